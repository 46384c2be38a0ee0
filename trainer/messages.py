"""What ranks send one another: JSON, over tensors. Nothing that comes over a socket is unpickled.

torch's own object collectives (``broadcast_object_list``, ``all_gather_object``) pickle, and whoever reaches the port of a gloo
connection could then run code in every rank. JSON has no such values. Besides those of JSON itself, a message may hold tuples and
paths. An error is sent by the name of its class, which must be one of Python's own or of `bellwether.trainer.config`.
"""

from __future__ import annotations

import builtins
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bellwether.trainer.config.errors import ConfigError, ConfigErrors

log = logging.getLogger(__name__)

_KIND = "bellwether"  # key of an object that stands for a value which JSON lacks


def encode(value: Any) -> bytes:
    """The bytes of a message.

    Raises:
        TypeError: if it holds something that cannot be sent.
    """
    return json.dumps(_to_json(value)).encode()


def decode(data: bytes) -> Any:
    """The value of a message.

    Raises:
        ValueError: if the bytes are no message.
    """
    return json.loads(data, object_hook=_from_json)


def encode_error(error: Exception) -> Any:
    """An error as a value that can be sent; one of another class, or with arguments that cannot be, becomes a RuntimeError."""
    if isinstance(error, ConfigErrors):
        return ["ConfigErrors", [encode_error(one) for one in error.errors]]
    name = type(error).__name__
    try:
        sent = [name, list(error.__reduce__()[1])]
        if str(decode_error(decode(encode(sent)))) == str(error):
            return sent
    except Exception:  # of any kind: a constructor may do anything with arguments that are not its own
        log.debug("%s is sent as a RuntimeError", name, exc_info=True)
    return ["RuntimeError", [f"{name}: {error}"]]


def decode_error(sent: Any) -> Exception:
    """The error that `encode_error` has described.

    Raises:
        TypeError: if its class is not one of those that are sent.
    """
    name, arguments = sent
    if name == "ConfigErrors":
        return ConfigErrors([error for error in map(decode_error, arguments) if isinstance(error, ConfigError)])
    kind = ConfigError if name == "ConfigError" else getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        raise TypeError(f"{name}: no error that is sent between ranks")
    return kind(*arguments)


def broadcast(data: bytes, device: torch.device) -> bytes:
    """Rank 0's bytes, on all ranks. Collective.

    Args:
        data: ignored on the other ranks.
        device: on which the process group communicates.
    """
    if dist.get_world_size() == 1:
        return data
    is_source = dist.get_rank() == 0
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, 0)
    tensor = _to_tensor(data, device) if is_source else torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(tensor, 0)
    return _to_bytes(tensor)


def all_gather(data: bytes, device: torch.device) -> list[bytes]:
    """The bytes of all ranks, in order. Collective.

    Args:
        device: on which the process group communicates.
    """
    count = dist.get_world_size()
    if count == 1:
        return [data]
    sizes = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(data)], device=device))
    lengths = [int(size) for size in sizes]
    rows = [torch.empty(max(lengths), dtype=torch.uint8, device=device) for _ in range(count)]
    dist.all_gather(rows, _to_tensor(data.ljust(max(lengths)), device))
    return [_to_bytes(row[:length]) for row, length in zip(rows, lengths, strict=True)]


def broadcast_value(value: Any, device: torch.device) -> Any:
    """Rank 0's value, on all ranks, where it can always be sent. Collective."""
    return decode(broadcast(encode(value), device))


def all_gather_values(value: Any, device: torch.device) -> list[Any]:
    """The values of all ranks, in order, where they can always be sent. Collective."""
    return [decode(data) for data in all_gather(encode(value), device)]


def _to_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_to_json(part) for part in value]
    if isinstance(value, tuple):
        return {_KIND: "tuple", "value": [_to_json(part) for part in value]}
    if isinstance(value, Path):
        return {_KIND: "path", "value": str(value)}
    if isinstance(value, dict) and all(isinstance(key, str) and key != _KIND for key in value):
        return {key: _to_json(part) for key, part in value.items()}
    raise TypeError(f"{type(value).__name__} cannot be sent between ranks")


def _from_json(found: dict[str, Any]) -> Any:
    if _KIND not in found:
        return found
    return {"tuple": tuple, "path": Path}[found[_KIND]](found["value"])


def _to_tensor(data: bytes, device: torch.device) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


def _to_bytes(data: torch.Tensor) -> bytes:
    return data.cpu().numpy().tobytes()
