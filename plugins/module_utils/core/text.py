"""Text for people."""

from __future__ import annotations

from collections.abc import Container, Sequence


def format_bytes(number: int) -> str:
    """A number of bytes for people: 31,914,983,424 bytes."""
    return f"{number:,} byte{'' if number == 1 else 's'}"


def text_table(rows: Sequence[Sequence[str]], numbers: Container[int]) -> str:
    """A table for people, a line per row; columns (by index) of `numbers` stand at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
