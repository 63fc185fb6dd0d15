"""Read the YAML of playbooks and roles, for tests that look at all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Yield each mapping of a YAML document, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from mappings(value)


def argument_specs(role: Path) -> dict[str, Any]:
    """Return the entry points of a role, from its meta/argument_specs.yml."""
    specs: dict[str, Any] = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    return specs
