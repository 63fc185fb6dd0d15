"""The end that all modules of this collection have: run, return the result, and turn what is wrong into a message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


def as_sentence(error: Exception) -> str:
    """Return an error's message as a sentence: with a capital at its start and a full stop at its end."""
    message = str(error)
    return f"{message[:1].upper()}{message[1:]}{'' if message.endswith(('.', '?')) else '.'}"


def run_module(
    spec: Mapping[str, Any],
    run: Callable[[AnsibleModule], Mapping[str, Any]],
    explain: Callable[[Exception], str] = str,
    errors: tuple[type[Exception], ...] = (BrambleError, OSError),
    supports_check_mode: bool = True,
    **options: Any,
) -> None:
    """Run a module and exit.

    :param spec: the argument_spec
    :param run: returns what the module returns; `changed` is false where it says nothing
    :param explain: makes a message of one of `errors`, which is what the module fails with
    :param options: further arguments of AnsibleModule, such as required_if
    """
    module = AnsibleModule(argument_spec=dict(spec), supports_check_mode=supports_check_mode, **options)
    try:
        result = run(module)
    except errors as error:
        module.fail_json(msg=explain(error), **getattr(error, "result", {}))
    module.exit_json(**{"changed": False, **result})
