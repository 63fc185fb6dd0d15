"""The recipe of a Debian image, read from a file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """The recipe of an image for one architecture. Sizes are in MiB."""

    name: str
    suite: str
    init_format: str
    architectures: tuple[str, ...]
    components: tuple[str, ...]
    packages: tuple[str, ...]
    masked_units: tuple[str, ...]
    first_partition: int
    bootfs: int
    slack: int
    customize: tuple[str, ...] = ()  # shell commands that mmdebstrap runs at its end; "$1" is the tree
    without: tuple[str, ...] = ()  # glob patterns of files in rootfs/ that this image does not get

    @classmethod
    def load(cls, path: Path, architecture: str) -> Recipe:
        """Return the recipe in a file. Raises BrambleError.

        In the table of an architecture, lists extend the lists of the recipe, and numbers replace its numbers.
        """
        try:
            data = tomllib.loads(path.read_text())
            tables = {key: data.pop(key) for key, value in list(data.items()) if isinstance(value, dict)}
            for key, value in tables.get(architecture, {}).items():
                data[key] = data[key] + value if isinstance(value, list) else value
            fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
            return cls(**fields)
        except (OSError, tomllib.TOMLDecodeError, LookupError, TypeError) as error:
            raise BrambleError(f"The recipe {path} cannot be used: {error}. Set another one with --recipe.") from error
