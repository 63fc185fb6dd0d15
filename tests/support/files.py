"""The files of the project that git lists, for tests that read all of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from tests.support import ROOT

# What tests have, users do not see.
NOT_SOURCES = ("tests/", "workloads/tests/", "molecule/", ".config/molecule/")


def project_files(*options: str) -> list[str]:
    """Return the files and links that exist and that git lists, by their paths in the repository.

    :param options: options and patterns of git-ls-files(1); without them, the files that are committed or added
    """
    command = ["git", "ls-files", "-z", *options]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in listed.split("\0") if path and ((ROOT / path).exists() or (ROOT / path).is_symlink())]


def project_texts(*patterns: str) -> Iterator[tuple[str, str]]:
    """Yield path and content of each regular file that is UTF-8 text.

    :param patterns: patterns of git-ls-files(1)
    """
    for path in project_files(*patterns):
        file = ROOT / path
        if file.is_file() and not file.is_symlink():
            try:
                yield path, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def source_texts() -> Iterator[tuple[str, str]]:
    """Yield path and content of what users run or configure: no pages, pictures or tests."""
    return (
        (path, text) for path, text in project_texts() if not path.endswith((".md", ".svg")) and not path.startswith(NOT_SOURCES)
    )
