"""What the tests of a pytest process share: its reaction to signals, its umask and its working directory."""

import os
import signal
from collections.abc import Iterator

import pytest

# A shell has its background jobs ignore Ctrl-C, and what a test starts would inherit that: signal(2), bash(1).
signal.signal(signal.SIGINT, signal.default_int_handler)


def process_state() -> dict[str, object]:
    """Return what later tests of this process would inherit."""
    umask = os.umask(0o077)
    os.umask(umask)
    handlers = {number.name: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    return {"umask": oct(umask), "directory": os.getcwd(), **handlers}


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Fail the test that leaves the process different, and not one that runs after it."""
    before = process_state()
    yield
    assert process_state() == before
