"""What the processes of a run on one machine listen on, and what a stranger can do to their store."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pickle
import subprocess
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from tests.launcher.processes import finish, ranks_of, start, steps, wait_for_step


def sockets_of(root: int) -> dict[str, list[tuple[str, int]]]:
    """The listening sockets of a process and all below it, by kind: tcp, udp, and unix with an address outside the file system."""
    found: dict[str, list[tuple[str, int]]] = {"tcp": [], "udp": [], "abstract": []}
    launcher = psutil.Process(root)
    for process in [launcher, *launcher.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for socket in process.net_connections(kind="all"):
                if isinstance(socket.laddr, str):
                    if socket.laddr.startswith(("@", "\0")):
                        found["abstract"].append((socket.laddr, process.pid))
                elif socket.status == psutil.CONN_LISTEN:
                    found["tcp"].append((socket.laddr.ip, socket.laddr.port))
                elif socket.status == psutil.CONN_NONE and not socket.raddr:
                    found["udp"].append((socket.laddr.ip, socket.laddr.port))
    return found


NO_PICKLE = """
import os
if "RANK" in os.environ:
    import torch.distributed.distributed_c10d as c10d
    def refuse(*_):
        raise AssertionError("an object collective unpickles what another rank sent")
    c10d._tensor_to_object = refuse
"""


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.process
def test_nothing_listens_beyond_loopback_and_a_stranger_in_the_store_neither_runs_code_nor_ends_the_run(
    space: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_PICKLE)
    # The variables of a cluster, as in a user's .bashrc, do not apply to one machine.
    interface = next(name for name in psutil.net_if_addrs() if name != "lo")
    process = start(
        space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=listening", "data.workers=1", "engine.heartbeat=6",
        GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface, PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    wait_for_step(process, space, "listening", 2)
    check_sockets(process.pid)
    flood(process, space, "listening", tmp_path / "code was run")
    os.killpg(process.pid, 15)
    status, _, error = finish(process)
    assert status == 75, error
    assert not (tmp_path / "code was run").exists()


def check_sockets(launcher: int) -> None:
    names = [" ".join(child.cmdline()) for child in psutil.Process(launcher).children(recursive=True)]
    found = sockets_of(launcher)
    assert any("forkserver" in name for name in names), names  # the data workers
    assert len(found["tcp"]) >= 3, "the store, and gloo in each rank"
    for kind in ("tcp", "udp"):
        for address, port in found[kind]:
            assert ipaddress.ip_address(address).is_loopback, f"{kind} {address}:{port}"
    # Every user of the machine can connect to a socket whose address is not a file.
    assert found["abstract"] == []


def flood(process: subprocess.Popen[str], space: Path, name: str, mark: Path) -> None:
    """Overwrite all that the run keeps in its store with a pickle that makes a file, and delete it."""
    (environment,) = {child.environ()["MASTER_PORT"] for child in ranks_of(process).values()}
    stranger = TCPStore(
        "127.0.0.1", int(environment), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
    )
    payload = pickle.dumps(Payload(mark))
    keys = stranger.list_keys()
    assert keys
    for _ in range(3):
        for key in {*keys, *(key.rpartition("/")[0] + "/failed" for key in keys)}:
            stranger.set(key, payload)
        wait_for_step(process, space, name, max(steps(space, name)) + 30)
    for key in keys:
        stranger.delete_key(key)
    wait_for_step(process, space, name, max(steps(space, name)) + 30)
