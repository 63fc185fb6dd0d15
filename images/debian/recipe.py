"""What a Debian image is made of, read from a recipe file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """What an image is made of, for one architecture. Sizes are in MiB."""

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
    customize: tuple[str, ...] = ()  # shell commands at the end of mmdebstrap; "$1" is the tree
    without: tuple[str, ...] = ()  # files of rootfs/ that this image does not have, as globs

    @classmethod
    def load(cls, path: Path, architecture: str) -> Recipe:
        """Read a recipe file. In a table named after an architecture, lists are added to and numbers replace those for all."""
        try:
            data = tomllib.loads(path.read_text())
            tables = {key: data.pop(key) for key, value in list(data.items()) if isinstance(value, dict)}
            for key, value in tables.get(architecture, {}).items():
                data[key] = data[key] + value if isinstance(value, list) else value
            fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
            return cls(**fields)
        except (OSError, tomllib.TOMLDecodeError, LookupError, TypeError) as error:
            raise BrambleError(f"The recipe {path} can not be used: {error}. Name another one with --recipe.") from error
