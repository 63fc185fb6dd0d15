"""Commands that must succeed."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule


def run(module: AnsibleModule, *command: str, data: str | None = None) -> None:
    """Run a command; where it fails, the module ends with what it said. `data` is its standard input."""
    code, out, err = module.run_command(list(command), data=data)
    if code:
        module.fail_json(msg=f"{' '.join(command)} ended with {code}: {(err or out).strip()}", rc=code)
