"""The store listens on one address, and values that somebody else wrote into our keys do not exist."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist

from bellwether.trainer import rendezvous, store
from bellwether.trainer.config import ConfigError
from bellwether.trainer.process_info import ProcessInfo
from bellwether.trainer.store import SignedStore


def listening(port: int) -> set[str]:
    return {
        s.laddr.ip for s in psutil.Process().net_connections("tcp") if s.status == "LISTEN" and s.laddr.port == port
    }


def own_addresses() -> list[str]:
    """Addresses of this machine other than loopback's."""
    return [ip for name, own in rendezvous._interfaces().items() if name != "lo" for ip in own if ":" not in ip]


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", store.SERVED):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_store_listens_on_one_address() -> None:
    server = store.serve("127.0.0.1")
    assert listening(server.port) == {"127.0.0.1"}
    server.set("a", "b")
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    assert client.get("a") == b"b"
    with pytest.raises(OSError, match="in use"):
        store.serve("127.0.0.1", server.port)


def test_rank_0_listens_on_loopback_for_one_machine_and_on_its_own_address_for_several() -> None:
    one = ProcessInfo(0, 2, 0, socket.gethostname(), free_port(), "srun", one_machine=True)
    server = store.open_store(one, timedelta(seconds=5))
    assert listening(one.port) == {"127.0.0.1"}
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert isinstance(store.open_store(ProcessInfo(0, 1, 0, "", 0, "none"), timedelta(seconds=5)), dist.HashStore)
    for address in own_addresses()[:1]:
        several = ProcessInfo(0, 2, 0, address, free_port(), "srun")
        other = store.open_store(several, timedelta(seconds=5))
        assert listening(several.port) == {address}
        del other
    del server


def test_address_that_other_machines_cannot_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"loop": "127.0.1.1", "elsewhere": "192.0.2.77"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: [(2, 1, 6, "", (names[host], 0))])
    for host, address in names.items():
        with pytest.raises(
            ConfigError, match=f"{host}:7.*{address}.*set BELLWETHER_INTERFACE to one of its interfaces"
        ):
            store.open_store(ProcessInfo(0, 2, 0, host, 7, "srun", secret="s"), timedelta(seconds=5))


def test_gloo_and_nccl_use_loopback_on_one_machine_and_gloo_the_network_of_the_rendezvous(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for address in own_addresses()[:1]:
        several = ProcessInfo(0, 2, 0, address, 1, "srun")
        store.choose_interface(several)
        assert address in rendezvous._interfaces()[os.environ["GLOO_SOCKET_IFNAME"]]
        assert "NCCL_SOCKET_IFNAME" not in os.environ
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
        store.choose_interface(several)
        assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    store.choose_interface(ProcessInfo(0, 2, 0, "x", 1, "srun", one_machine=True))
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"


def test_only_values_signed_with_the_secret_exist() -> None:
    shared = dist.HashStore()
    ours, stranger = SignedStore(shared, "run/", "secret"), SignedStore(shared, "run/", "guess")
    assert ours.get(["a", "b"]) == [None, None]
    ours.set("a", {"n": 1})
    stranger.set("b", {"n": 2})
    assert ours.get(["a", "b"]) == [{"n": 1}, None]
    # A value copied from another key, or from another run with the same secret, does not count either.
    shared.set("run/b", shared.get("run/a"))
    shared.set("later/a", shared.get("run/a"))
    assert ours.get(["b"]) == [None]
    assert SignedStore(shared, "later/", "secret").get(["a"]) == [None]
    for forged in ("", "x", "0" * 64, "0" * 64 + "{}", "\x80\x04K\x01."):
        shared.set("run/a", forged)
        assert ours.get(["a"]) == [None]
    shared.delete_key("run/a")
    ours.set("b", "again")
    assert ours.get(["a", "b"]) == [None, "again"]
