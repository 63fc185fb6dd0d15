"""Ansible lookup: what the control machine lacks for a strict login to the nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
name: login_problems
short_description: What the control machine lacks for a strict login to the nodes
description:
  - Checks that the cluster's private key exists, and that the OpenSSH known_hosts file has a host key of each node.
author: Bramble
options:
  _terms:
    description: The names of the nodes.
    required: true
  ssh_key:
    description: The cluster's private key.
    type: path
    required: true
  known_hosts:
    description: The known_hosts file (sshd(8)), with plain host names.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Check that a strict login to the nodes is possible
  ansible.builtin.assert:
    that: __problems | length == 0
    fail_msg: "{{ __problems }}"
  vars:
    __problems: "{{ query('bramble.cluster.login_problems', 'pi-01', 'pi-02', ssh_key='id_ed25519', known_hosts='known_hosts') }}"
"""

RETURN = r"""
_raw:
  description: One sentence for each problem, with what to do; empty when there is none.
  type: list
  elements: str
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase


def login_problems(hosts: Iterable[str], ssh_key: str, known_hosts: str) -> list[str]:
    """Return what is missing for a strict login, one sentence for each problem: see DOCUMENTATION."""
    problems = []
    if not Path(ssh_key).is_file():
        problems.append(f"The cluster's SSH key {ssh_key} is missing. playbooks/cards.yml generates it; or copy your key there.")
    known: set[str] = set()
    if Path(known_hosts).is_file():
        for line in Path(known_hosts).read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                known.update(line.split()[0].split(","))
    missing = [host for host in hosts if host not in known]
    if missing:
        problems.append(
            f"No host key is known for {', '.join(missing)} ({known_hosts}). "
            f"Flash the cards: ansible-playbook playbooks/cards.yml --limit {','.join(missing)}"
        )
    return problems


class LookupModule(LookupBase):
    """The lookup login_problems."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return what is missing for a strict login to the nodes."""
        self.set_options(var_options=variables, direct=kwargs)
        return login_problems(terms, self.get_option("ssh_key"), self.get_option("known_hosts"))
