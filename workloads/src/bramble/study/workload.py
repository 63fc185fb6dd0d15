"""The registration of a workload."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bramble.study.program import Program


@dataclass(frozen=True)
class Workload:
    """What a folder of `bramble.programs` provides, as WORKLOAD in its module `workload`.

    `programs`: functions that return a Program. Each becomes a command with the common options, and its program is timed,
    compared, written and checked. `commands`: other commands. `rainbow_build` becomes `bramble rainbow build`.
    `comparisons`: what `bramble compare` runs, by name: functions that get a number of seconds and return a Program that
    takes about that long on one core of a workstation. The docstring describes it in the report.
    `imports`: modules of other packages that are imported late, so that nodes compile them at installation.
    `group_help`: the text of `bramble rainbow --help`. `has_negative_arguments`: `-8` is a number, not an unknown option.
    """

    programs: tuple[Callable[..., "Program"], ...] = ()
    commands: tuple[Callable[..., None], ...] = ()
    comparisons: Mapping[str, Callable[[float], "Program"]] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    group_help: str | None = None
    has_negative_arguments: bool = False
