"""Run a module of plugins/modules in a separate process: python -m tests.support.module card_write ARGUMENTS.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ansible.module_utils.testing import patch_module_args

from .load_plugin import load_plugin

if __name__ == "__main__":
    with patch_module_args(json.loads(Path(sys.argv[2]).read_text())):
        load_plugin("modules", sys.argv[1]).main()
