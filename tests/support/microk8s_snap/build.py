#!/usr/bin/env python3
"""Make the snaps that a rehearsal of MicroK8s installs, none of which its publisher knows.

    build.py FOLDER [--release 1.36.0]

snapd_0.snap and core22_0.snap are all but empty: snapd wants a snap of these names before any other, and would look in the store.
microk8s_0.snap is the stand-in beside this file; with the programs of Kubernetes (tests/slow/test_kubernetes.py) it runs pods.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
# Folders that snap-confine mounts over.
BASE = (
    "dev",
    "etc",
    "home",
    "lib",
    "lib64",
    "media",
    "proc",
    "root",
    "run",
    "snap",
    "sys",
    "tmp",
    "usr",
    "var/snap",
    "var/lib/snapd",
)
LABEL = "a stand-in for rehearsals"
# What is run for Kubernetes: on one node the control plane, on all of them the others, which start again however they end.
CONTROL_PLANE = ("etcd", "apiserver", "controller-manager", "scheduler")
EVERY_NODE = ("containerd", "kubelet", "proxy", "network")


def pack(target: Path, meta: Mapping[str, object], files: Mapping[str, Path | str | None]) -> None:
    """A snap: its snap.yaml (JSON is YAML), and by their place: files, folders, texts, and None for an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for place, source in {"meta": None, **files}.items():
            (tree / place if source is None else (tree / place).parent).mkdir(parents=True, exist_ok=True)
            if isinstance(source, str):
                (tree / place).write_text(source)
            elif source and source.is_dir():
                shutil.copytree(source, tree / place, symlinks=True)
            elif source:
                shutil.copy(source, tree / place)
                (tree / place).chmod(0o755)
        tree.chmod(0o755)
        (tree / "meta/snap.yaml").write_text(json.dumps({"summary": LABEL, "description": LABEL, **meta}))
        target.unlink(missing_ok=True)
        command: list[str | Path] = ["mksquashfs", tree, target, "-noappend", "-no-xattrs", "-all-root", "-no-progress", "-quiet"]
        # With Kubernetes it is large, and only for a test.
        command += ["-comp", "zstd", "-Xcompression-level", "3", "-all-time", "0", "-mkfs-time", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def build(folder: Path, release: str, programs: Mapping[str, Path] | None = None) -> None:
    """The three snaps, in a folder that is made; `programs`: what Kubernetes needs, by its place: usr, kubectl, pause.tar."""
    folder.mkdir(parents=True, exist_ok=True)
    pack(folder / "snapd_0.snap", {"name": "snapd", "version": "0", "type": "snapd"}, {"usr/lib/snapd/info": "VERSION=0\n"})
    pack(folder / "core22_0.snap", {"name": "core22", "version": "0", "type": "base", "base": "none"}, dict.fromkeys(BASE))
    apps: dict[str, dict[str, str]] = {
        "microk8s": {"command": "microk8s"},
        "daemon-cluster-agent": {"command": "microk8s agent", "daemon": "simple", "restart-condition": "always"},
    }
    files: dict[str, Path | str | None] = {name: HERE / name for name in ("microk8s", "kubectl")}
    if programs:
        for name in (*CONTROL_PLANE, *EVERY_NODE):
            again = {"restart-condition": "always" if name in EVERY_NODE else "on-failure", "restart-delay": "3s"}
            apps[f"daemon-{name}"] = {"command": f"kubernetes {name}", "daemon": "simple", "stop-timeout": "10s", **again}
        hooks = ("meta/hooks/install", "meta/hooks/remove")
        files |= {**dict.fromkeys(("kubernetes", *hooks), HERE / "kubernetes"), **programs}
    meta = {"name": "microk8s", "version": f"v{release}-standin", "base": "core22", "confinement": "classic", "apps": apps}
    pack(folder / "microk8s_0.snap", meta, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--release", default="1.36.0")
    arguments = parser.parse_args()
    build(arguments.folder, arguments.release)
