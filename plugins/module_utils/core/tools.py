"""The environment of the programs that look at file systems, and change them."""

from __future__ import annotations

import os

# For the tools that look at file systems, and change them.
TOOL_ENV = {
    "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "MTOOLS_SKIP_CHECK": "1",
}
