#!/usr/bin/env python3
"""Build the unsigned snaps that a rehearsal of MicroK8s installs.

    build.py FOLDER [--release 1.36.0]

snapd_0.snap and core22_0.snap are almost empty: snapd requires snaps with these names before any other, and would download them.
microk8s_0.snap is the imitation in this folder. With the programs of Kubernetes (tests/slow/test_kubernetes.py), it runs pods.
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
# Mount points of snap-confine.
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
LABEL = "an imitation for rehearsals"
# The daemons of Kubernetes: the control plane on one node, and the others on every node, where they are always restarted.
CONTROL_PLANE = ("etcd", "apiserver", "controller-manager", "scheduler")
EVERY_NODE = ("containerd", "kubelet", "proxy", "network")


def build_snap(target: Path, meta: Mapping[str, object], files: Mapping[str, Path | str | None]) -> None:
    """Build a snap.

    :param meta: the content of snap.yaml
    :param files: files, folders or texts by their path in the snap; None stands for an empty folder
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for path_in_snap, source in {"meta": None, **files}.items():
            (tree / path_in_snap if source is None else (tree / path_in_snap).parent).mkdir(parents=True, exist_ok=True)
            if isinstance(source, str):
                (tree / path_in_snap).write_text(source)
            elif source and source.is_dir():
                shutil.copytree(source, tree / path_in_snap, symlinks=True)
            elif source:
                shutil.copy(source, tree / path_in_snap)
                (tree / path_in_snap).chmod(0o755)
        tree.chmod(0o755)
        (tree / "meta/snap.yaml").write_text(json.dumps({"summary": LABEL, "description": LABEL, **meta}))
        target.unlink(missing_ok=True)
        command: list[str | Path] = ["mksquashfs", tree, target, "-noappend", "-no-xattrs", "-all-root", "-no-progress", "-quiet"]
        # With Kubernetes, the snap is large, so a fast compression is used.
        command += ["-comp", "zstd", "-Xcompression-level", "3", "-all-time", "0", "-mkfs-time", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def build(folder: Path, release: str, programs: Mapping[str, Path] | None = None) -> None:
    """Build the three snaps in a folder, which is created.

    :param programs: the programs of Kubernetes by their path in the snap: usr, kubectl and pause.tar
    """
    folder.mkdir(parents=True, exist_ok=True)
    build_snap(folder / "snapd_0.snap", {"name": "snapd", "version": "0", "type": "snapd"}, {"usr/lib/snapd/info": "VERSION=0\n"})
    build_snap(folder / "core22_0.snap", {"name": "core22", "version": "0", "type": "base", "base": "none"}, dict.fromkeys(BASE))
    apps: dict[str, dict[str, str]] = {
        "microk8s": {"command": "microk8s"},
        "daemon-cluster-agent": {"command": "microk8s agent", "daemon": "simple", "restart-condition": "always"},
    }
    files: dict[str, Path | str | None] = {name: HERE / name for name in ("microk8s", "kubectl")}
    if programs:
        for name in (*CONTROL_PLANE, *EVERY_NODE):
            restart = {"restart-condition": "always" if name in EVERY_NODE else "on-failure", "restart-delay": "3s"}
            apps[f"daemon-{name}"] = {"command": f"kubernetes {name}", "daemon": "simple", "stop-timeout": "10s", **restart}
        hooks = ("meta/hooks/install", "meta/hooks/remove")
        files |= {**dict.fromkeys(("kubernetes", *hooks), HERE / "kubernetes"), **programs}
    meta = {"name": "microk8s", "version": f"v{release}-standin", "base": "core22", "confinement": "classic", "apps": apps}
    build_snap(folder / "microk8s_0.snap", meta, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--release", default="1.36.0")
    arguments = parser.parse_args()
    build(arguments.folder, arguments.release)
