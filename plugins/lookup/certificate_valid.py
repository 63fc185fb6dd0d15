"""Ansible lookup: check that certificates of the cluster's authority can still be used."""

from __future__ import annotations

DOCUMENTATION = r"""
name: certificate_valid
short_description: Check that certificates of the cluster's authority can still be used
description:
  - Reads FOLDER/ca.pem, and for each name FOLDER/nodes/NAME.pem and FOLDER/nodes/NAME.key. Returns whether the authority has
    signed the certificate, the key belongs to it, it has exactly the required names, and it is valid for long enough.
  - Runs on the control machine, without a process for each node. A missing or damaged file returns V(false).
author: Bramble
options:
  _terms:
    description: The names of the certificates, such as V(pi-01).
    required: true
  folder:
    description: The folder of the authority.
    type: path
    required: true
  names:
    description: The host names and IP addresses that the certificate must have, and no others (RFC 5280, section 4.2.1.6).
    type: list
    elements: str
    required: true
  days:
    description: The number of days from now for which the certificate must be valid.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Show whether pi-01 needs a new certificate
  ansible.builtin.debug:
    msg: "{{ not lookup('bramble.cluster.certificate_valid', 'pi-01', folder=certificate_dir, names=['pi-01'], days=90) }}"
"""

RETURN = r"""
_raw:
  description: Whether each certificate can be used.
  type: list
  elements: bool
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase


def certificate_valid(folder: str, name: str, names: Sequence[str], days: int) -> bool:
    """Return whether FOLDER/nodes/NAME.pem can be used: see DOCUMENTATION."""
    # Imported here, because these imports take 50 ms, and Ansible loads this file also for plays that do not call it.
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    authority_folder = Path(folder)
    try:
        authority = x509.load_pem_x509_certificate((authority_folder / "ca.pem").read_bytes())
        certificate = x509.load_pem_x509_certificate((authority_folder / f"nodes/{name}.pem").read_bytes())
        key = load_pem_private_key((authority_folder / f"nodes/{name}.key").read_bytes(), None)
        certificate.verify_directly_issued_by(authority)
        alternative_names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        {str(entry.value) for entry in alternative_names} == {str(entry) for entry in names}
        and certificate.public_key() == key.public_key()
        and certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=int(days))
    )


class LookupModule(LookupBase):
    """The lookup certificate_valid."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[bool]:
        """Return whether each certificate can be used."""
        self.set_options(var_options=variables, direct=kwargs)
        folder, names, days = (self.get_option(name) for name in ("folder", "names", "days"))
        return [certificate_valid(folder, term, names, days) for term in terms]
