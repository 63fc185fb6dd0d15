"""Run a module of this collection: return its result, or fail with the message of its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError


def as_sentence(error: Exception | str) -> str:
    """Return an error, or its message, as a sentence: with a capital letter at its start and a full stop at its end."""
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
    """Run a module, and exit with its result or its error.

    :param spec: the argument_spec
    :param run: returns the module's result; `changed` is false unless the result sets it
    :param explain: returns the message of an error
    :param errors: the exceptions with which the module fails; others are bugs, and are shown with a traceback
    :param options: further arguments of AnsibleModule, such as required_if
    """
    module = AnsibleModule(argument_spec=dict(spec), supports_check_mode=supports_check_mode, **options)
    try:
        result = run(module)
    except errors as error:
        module.fail_json(msg=explain(error), **getattr(error, "result", {}))
    module.exit_json(**{"changed": False, **result})
