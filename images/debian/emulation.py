"""Run programs of another architecture by emulation, in a user namespace of the build."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ansible_collections.bramble.cluster.images.debian.packages import KEYRING
from ansible_collections.bramble.cluster.images.debian.recipe import Recipe
from ansible_collections.bramble.cluster.images.host import run

# Architectures that can be emulated: the name in qemu, and the magic and mask by which the kernel recognises programs: the first
# 20 bytes of ELF files (64 bits, little-endian, any ABI, an executable or a library), and which of their bits are compared.
EMULATED_ARCHITECTURES = {
    "arm64": (
        "aarch64",
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00",
        b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff",
    )
}
# The first release of Linux with a separate binfmt_misc in each user namespace.
MIN_EMULATION_KERNEL = (6, 7)


def run_in_user_namespace(command: list[str]) -> int:
    """Run a command in a user namespace that maps every user to itself, and return its exit code."""
    waiting = ["unshare", "--user", "sh", "-c", 'echo; read -r _ && exec "$@"', "sh", *command]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout and process.stdout.readline():
                # Only a process outside of the namespace can map more than one user.
                for table in ("uid_map", "gid_map"):
                    Path(f"/proc/{process.pid}/{table}").write_text("0 0 4294967295\n")
                process.communicate("\n")
        except BaseException:
            process.kill()
            raise
    return process.returncode


def register_emulator(recipe: Recipe, architecture: str, work: Path) -> None:
    """Register qemu of the recipe's Debian release with the kernel, in this user namespace, for programs of an architecture.

    The qemu of this machine may be too old: version 7.2 hangs in a build.
    """
    machine, magic, mask = EMULATED_ARCHITECTURES[architecture]
    tools, binfmt = work / "tools", work / "binfmt"
    options = ["--variant=extract", "--format=directory", f"--keyring={KEYRING}", "--include=qemu-user"]
    run("mmdebstrap", *options, recipe.suite, tools)
    binfmt.mkdir()
    run("mount", "-t", "binfmt_misc", "binfmt_misc", binfmt)
    escaped = ["".join(f"\\x{byte:02x}" for byte in word) for word in (magic, mask)]
    # P: programs see their own argv[0]. C: setuid programs such as sudo work. F: qemu is opened now, and need not exist later.
    fields = ["", architecture, "M", "", *escaped, f"{tools}/usr/bin/qemu-{machine}", "PCF"]
    # The first character is the separator of the fields; a path never contains a tab.
    (binfmt / "register").write_text("\t".join(fields))
    shutil.rmtree(tools)
