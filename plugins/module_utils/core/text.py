"""Format numbers and tables for the user."""

from __future__ import annotations

from collections.abc import Container, Sequence


def format_bytes(size: int) -> str:
    """Return a size with its unit, such as "31,914,983,424 bytes"."""
    return f"{size:,} byte{'' if size == 1 else 's'}"


def text_table(rows: Sequence[Sequence[str]], right_aligned: Container[int]) -> str:
    """Return rows as a table, one line per row. `right_aligned` has the indices of the columns that are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right_aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def printable(name: str) -> str:
    """Return a name with escapes for what a table or a terminal cannot show: control characters, and bytes that are not UTF-8."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def replace_invalid(text: str) -> str:
    """Return text with escapes for the bytes of file names that are not UTF-8, as Ansible and JSON take no others."""
    return text.encode("utf-8", "backslashreplace").decode()
