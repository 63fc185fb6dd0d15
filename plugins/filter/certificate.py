"""Does a node's certificate still serve? Asked on the control machine, without a process for each node."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any


def certificate_serves(folder: str, node: str, names: Sequence[str], days: int) -> bool:
    """Whether FOLDER/nodes/NODE.pem is signed by FOLDER/ca.pem, fits NODE.key, is for `names` and is valid for `days` more.

    :param names: host names and IP addresses, all that the certificate is for (RFC 5280, section 4.2.1.6)
    """
    # Here, since Ansible loads this file in every process that looks for any filter.
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    place = Path(folder)
    try:
        authority = x509.load_pem_x509_certificate((place / "ca.pem").read_bytes())
        certificate = x509.load_pem_x509_certificate((place / f"nodes/{node}.pem").read_bytes())
        key = load_pem_private_key((place / f"nodes/{node}.key").read_bytes(), None)
        certificate.verify_directly_issued_by(authority)
        given = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        {str(name.value) for name in given} == {str(name) for name in names}
        and certificate.public_key() == key.public_key()
        and certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=int(days))
    )


class FilterModule:
    """Filters for the role certificate."""

    def filters(self) -> dict[str, Any]:
        return {"certificate_serves": certificate_serves}
