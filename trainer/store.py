"""The run's key-value store: on which address it listens, and keys that only processes of the run can write.

torch's TCPStore listens on all interfaces by default, and has no authentication: whoever reaches its port can list, read, overwrite
and delete every key. Here it listens on one address, and the values of our own keys are signed with a secret that the launcher gives
to the ranks in ``BELLWETHER_SECRET``. What torch, gloo and NCCL keep in it themselves is not signed (docs/security.md).
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bellwether.trainer import rendezvous
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.process_info import ProcessInfo

log = logging.getLogger(__name__)

SERVED = "TORCHELASTIC_USE_AGENT_STORE"  # True where the launcher serves the store; torchrun's name
_TIMEOUT = timedelta(minutes=5)
_DIGEST = "sha256"
_DIGEST_LENGTH = 64  # hexadecimal digits
_BACKLOG = 4096  # ranks that may connect at the same moment

_of_run: dist.Store | None = None  # this process's connection to the run's store


def choose_interface(process: ProcessInfo) -> None:
    """Let gloo and NCCL listen on loopback only if all processes are on this machine, otherwise gloo where rank 0 is reached.

    Between machines NCCL itself chooses the fastest network, unless NCCL_SOCKET_IFNAME is set.
    """
    if process.one_machine:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = rendezvous.loopback()
    elif "GLOO_SOCKET_IFNAME" not in os.environ and (interface := rendezvous.interface_to(process.address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def open_store(process: ProcessInfo, timeout: timedelta) -> dist.Store:
    """The store of the process group. Rank 0 serves it, unless its launcher does. Sets MASTER_ADDR and MASTER_PORT.

    Raises:
        ConfigError: if rank 0 cannot listen on the address of the rendezvous.
    """
    global _of_run
    _of_run = _open_store(process, timeout)
    return _of_run


def of_run() -> dist.Store:
    """The store that `open_store` has opened, on the same connection.

    Not for what must go on while the main thread waits for a key: a connection does one thing at a time.
    """
    assert _of_run is not None, "the process group has not been started"
    return _of_run


def _open_store(process: ProcessInfo, timeout: timedelta) -> dist.Store:
    if process.size == 1:
        return dist.HashStore()
    address = process.address
    is_served = process.launcher in ("torchrun", "environment") and os.environ.get(SERVED) == "True"
    if process.one_machine and not is_served:
        address = "127.0.0.1"
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(process.port))
    if process.rank == 0 and not process.one_machine and not process.secret:
        log.warning("this launcher gives the ranks no secret: others can write to their store (docs/security.md)")
    if process.rank != 0 or is_served:
        return connect(timeout)
    try:
        return serve(address if process.one_machine else listening_address(address), process.port, timeout)
    except (OSError, ValueError) as error:
        advice = "set MASTER_ADDR to an address of rank 0's machine, and MASTER_PORT to a free port"
        raise ConfigError(
            "MASTER_ADDR", f"{address}:{process.port}", f"rank 0 cannot listen there: {error}", advice
        ) from None


def listening_address(host: str) -> str:
    """The address on which the store of ranks on several machines listens: of BELLWETHER_INTERFACE, or of the host's name.

    Raises:
        OSError: if the name cannot be resolved.
        ValueError: if there is no such interface, or other machines cannot reach this one under that name.
    """
    interface = os.environ.get("BELLWETHER_INTERFACE")
    return rendezvous.address(interface) if interface else rendezvous.own_address(host)


def serve(address: str, port: int = 0, timeout: timedelta = _TIMEOUT) -> dist.TCPStore:
    """Start a store in this process, which listens on one address.

    Args:
        address: an IP address of this machine.
        port: 0: any that is free (`TCPStore.port`).
        timeout: of reading a key that does not exist.

    Raises:
        OSError: if another process listens there, or this machine does not have the address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    port = listener.getsockname()[1]
    return dist.TCPStore(
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), timeout=timeout
    )


def connect(timeout: timedelta = _TIMEOUT) -> dist.TCPStore:
    """A new connection to the store at MASTER_ADDR and MASTER_PORT.

    Args:
        timeout: to connect, and of reading a key that does not exist.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)


class SignedStore:
    """Keys of a store whose values are JSON, signed with the run's secret. A value that somebody else has written does not exist.

    Args:
        prefix: of all keys, different for each use: a signature holds for one full key.
        secret: of the run; empty: every process that reaches the store can write.
    """

    def __init__(self, store: dist.Store, prefix: str, secret: str) -> None:
        self._store, self._prefix, self._secret = store, prefix, secret.encode()

    def set(self, key: str, value: Any) -> None:
        """Set a key to a value of JSON."""
        text = json.dumps(value)
        self._store.set(self._prefix + key, self._sign(key, text) + text)

    def get(self, keys: Sequence[str]) -> list[Any]:
        """The values of keys; None for each that does not exist. Does not wait."""
        names = [self._prefix + key for key in keys]
        if not self._store.check(names):
            names = [name for name in names if self._store.check([name])]
        found = dict(zip(names, self._store.multi_get(names), strict=True)) if names else {}
        return [self._verified(key, found.get(self._prefix + key)) for key in keys]

    def _verified(self, key: str, value: bytes | None) -> Any:
        digest, text = (value or b"")[:_DIGEST_LENGTH], (value or b"")[_DIGEST_LENGTH:].decode(errors="replace")
        return json.loads(text) if hmac.compare_digest(digest, self._sign(key, text).encode()) else None

    def _sign(self, key: str, text: str) -> str:
        return hmac.new(self._secret, f"{self._prefix}{key}\0{text}".encode(), _DIGEST).hexdigest()
