"""What a workload registers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bramble.study.program import Program


@dataclass(frozen=True)
class Workload:
    """What a folder of `bramble.programs` says of itself, as WORKLOAD in its module `workload`.

    `programs`: commands that return a Program. Each gets the options that all have; what it computes is timed, compared,
    written and checked. `commands`: other commands. `rainbow_build` becomes `bramble rainbow build`.
    `comparisons`: what `bramble compare` runs, by name: a Program that takes about so many seconds on one core of a
    workstation. Its docstring says in the report what it is.
    `imports`: modules beyond this package that are imported late; nodes compile them when they are installed.
    `group_help`: what `bramble rainbow --help` says. `has_negative_arguments`: `-8` is a number, not an unknown option.
    """

    programs: tuple[Callable[..., "Program"], ...] = ()
    commands: tuple[Callable[..., None], ...] = ()
    comparisons: Mapping[str, Callable[[float], "Program"]] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    group_help: str | None = None
    has_negative_arguments: bool = False
