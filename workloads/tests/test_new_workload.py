"""A new workload is a folder, a test and a section of the README: no other file is edited."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, SOURCE

pytestmark = pytest.mark.timeout(180)
TEMPLATE = Path(__file__).with_name("template")
MOST_FILES = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the template's files added."""
    root = tmp_path_factory.mktemp("workloads")
    shutil.copytree(SOURCE, root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    before = {path for path in root.rglob("*") if path.is_file()}
    template = [path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(template) <= MOST_FILES
    if (SOURCE / "bramble/programs/collatz").exists():
        pytest.skip("the template was copied into this tree")
    for path in template:
        target = root / path.relative_to(TEMPLATE)
        assert target not in before  # no file is overwritten
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


def python(root: Path, *words: str | Path, **environment: str) -> str:
    """Run Python in the copy and return what it printed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=root, env=ENVIRONMENT | {"PYTHONPATH": str(root / "src")} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return done.stdout


def test_the_command_has_it(root: Path) -> None:
    assert "collatz" in python(root, "-m", "bramble", "--help")
    record = json.loads(python(root, "-m", "bramble", "collatz", "--upper", "999", "--on", "workstation", "--json", "-"))
    assert (record["steps"], record["start"]) == (178, 871)
    assert "collatz" in python(root, "-m", "bramble", "workloads").splitlines()


def test_it_can_be_shared(root: Path, tmp_path: Path) -> None:
    words = ["-m", "bramble", "collatz", "--upper", "999"]
    for index in (1, 2):
        python(root, *words, "--on", "local", "--share", f"{index}/2", "--report", tmp_path)
    assert json.loads(python(root, *words, "--merge", tmp_path, "--json", "-"))["start"] == 871


def test_compare_runs_it(root: Path, tmp_path: Path) -> None:
    python(root, "-m", "bramble", "compare", "collatz", "--on", "local", "--minutes", "0.1", "--report", tmp_path)
    assert "plain Python, with jobs that are nearly equal" in (tmp_path / "compare.html").read_text()


def test_nodes_compile_it(root: Path) -> None:
    compiled = root / "compiled"
    settings = {"NUMBA_DISABLE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(compiled)}
    python(root, "-m", "bramble.precompile", **settings)
    folder = compiled / (root / "src/bramble/programs/collatz").relative_to("/")
    assert sorted(path.name.partition(".")[0] for path in folder.iterdir()) == ["__init__", "workload"]


def test_its_own_test_passes(root: Path) -> None:
    assert "2 passed" in python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_collatz.py")


def test_nodes_compile_everything() -> None:
    """Python modules are compiled, but kernels not to machine code, as the module bundle_install requests it."""
    names = subprocess.run(
        [sys.executable, "-m", "bramble.precompile"],
        env=ENVIRONMENT | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    own_modules = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for package in ("bramble", "dispy")
        for path in (SOURCE / package).rglob("*.py")
    }
    assert own_modules - {"bramble", "dispy"} <= set(names)  # importing a module imports its package
    assert {"qdk", "jinja2", "distributed.cli.dask_worker"} <= set(names)
