"""Runs a module of plugins/modules in a process of its own: python -m tests.rig.module card_write ARGUMENTS.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ansible.module_utils
from ansible.module_utils.testing import patch_module_args

from tests.unit.load_plugin import ROOT, load

if __name__ == "__main__":
    ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
    with patch_module_args(json.loads(Path(sys.argv[2]).read_text())):
        load(ROOT / "plugins" / "modules" / f"{sys.argv[1]}.py").main()
