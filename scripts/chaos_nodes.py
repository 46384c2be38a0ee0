"""Two nodes on this machine for `scripts.chaos`: network and process namespaces, joined by a virtual cable.

A killed node loses all its processes at once, and a cut link drops all packets. `enter` gives the script namespaces of its own,
so that mounts and nodes vanish with it, and without root where the system allows user namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

INSIDE = "BELLWETHER_CHAOS_INSIDE"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
# What `bellwether launch --on ssh` calls instead of ssh: enters the node whose address is the last word but one.
_SSH = """#!/bin/sh
while [ $# -gt 2 ]; do shift; done
exec nsenter --net --uts --pid --target "$(cat "{folder}/$1.pid")" -- sh -c "$2"
"""


def enter() -> bool:
    """Run this script again in namespaces of its own; returns False where the machine has none, and True inside of them."""
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return True
    if shutil.which("unshare") is None or shutil.which("ip") is None or shutil.which("nsenter") is None:
        return False
    wrap = ["unshare", "--mount", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--"]
    probe = "mount -t tmpfs none /mnt && ip link set lo up && ip link add probe type veth"
    if subprocess.run([*wrap, "sh", "-c", probe], capture_output=True).returncode != 0:
        return False
    os.execvpe(wrap[0], [*wrap, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


class Nodes:
    """Two running nodes with the addresses `ADDRESSES`. `close` ends them.

    Args:
        folder: for their process ids and the script that stands for ssh.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ssh = folder / "ssh"
        self.ssh.write_text(_SSH.format(folder=folder))
        self.ssh.chmod(0o755)
        self._inits: list[subprocess.Popen[bytes]] = []
        self._pids: list[int] = []
        for address in ADDRESSES:
            # The namespace's first process: when it dies, the kernel kills all others in it.
            init = "while true; do sleep 3600 & wait; done"
            command = [
                "unshare",
                "--net",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--",
                "sh",
                "-c",
                f"echo; {init}",
            ]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._inits.append(process)
            assert process.stdout is not None
            process.stdout.readline()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            self._pids.append(int(children[0]))
            (folder / f"{address}.pid").write_text(children[0])
        _ip("link", "add", "chaos0", "type", "veth", "peer", "name", "chaos1")
        for index, address in enumerate(ADDRESSES):
            _ip("link", "set", f"chaos{index}", "netns", str(self._pids[index]))
            for words in (
                f"addr add {address}/24 dev chaos{index}", f"link set chaos{index} up", "link set lo up",
            ):  # fmt: skip
                self._ip_in(index, *words.split())

    def kill(self, index: int) -> None:
        """Power one node off."""
        os.kill(self._pids[index], 9)

    def cut(self, cut: bool) -> None:
        """Cut the link between the nodes, or mend it."""
        self._ip_in(1, "link", "set", "chaos1", "down" if cut else "up")

    def close(self) -> None:
        for process in self._inits:
            process.kill()
            process.wait()

    def _ip_in(self, index: int, *words: str) -> None:
        subprocess.run(["nsenter", "--net", "--target", str(self._pids[index]), "ip", *words], check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
