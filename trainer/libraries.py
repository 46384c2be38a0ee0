"""The imports of DeepSpeed and transformers, without what a training run has no use for.

Every rank of a run pays for them, in seconds of a core and in reads from a file system that all ranks share.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from bellwether.trainer.import_hook import after_import


def use_huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MiB for tensors on the CPU of that size or more. To be called before torch allocates one.

    The C library maps tensors of 32 MiB anew each time, and gloo's all-gather and DeepSpeed's buckets allocate several times the size
    of the model in each step: in pages of 4 KiB, a step of ResNet-50 spends a quarter of its CPU time in the kernel.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def import_deepspeed() -> Any:
    """DeepSpeed, without its warnings, and without imports and builds that training does not use."""
    # DeepSpeed 0.19.8 calls collectives by the names they had before torch 2.13.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its autotuner imports MLflow where that is installed: 2 s of a core.
        with _absent("mlflow"):
            import deepspeed

        # `deepspeed.initialize` imports Muon, whether it is used or not, and there torch.compile as a decorator imports all
        # of Inductor: 4 s of a core. Imported here with a decorator that does nothing, it costs nothing.
        import torch

        compiler = torch.compile
        torch.compile = lambda function=None, **_: function or (lambda inner: inner)  # type: ignore[assignment]
        try:
            with contextlib.suppress(ImportError):  # another version may keep it elsewhere, and then it costs the 4 s
                import deepspeed.runtime.zero.muon.muon_optimizer
        finally:
            torch.compile = compiler
    skip_shared_memory()
    if os.environ.get("DEEPSPEED_LOG_LEVEL") is None:
        deepspeed.utils.logger.setLevel(logging.ERROR)
    return deepspeed


def quicken_transformers() -> None:
    """Let a later ``import transformers`` do without a search of 1,600 source files, and without SciPy.

    transformers 5 searches them twice per process for its list of models: 1 to 2 s of a core. The list is kept in ~/.cache/bellwether
    (XDG_CACHE_HOME), a file per installation. Its losses of object detection, which no run has, import SciPy's optimizers: 0.5 s.
    Where transformers is imported already, or works differently, this does nothing.
    """
    if "transformers" not in sys.modules:
        after_import("transformers.utils.import_utils", _keep_list)
        after_import("transformers.utils.import_utils", _hide_scipy_from_losses)


def skip_shared_memory() -> None:
    """Let DeepSpeed do without its shared-memory all-reduce for inference on CPUs.

    It is compiled for a minute, and a process killed during that leaves a lock on which every later run would wait forever.
    """
    after_import("deepspeed.comm.torch", _build_no_shared_memory)


def _build_no_shared_memory(backend: ModuleType) -> None:
    backend.build_shm_op = lambda: None  # type: ignore[attr-defined]


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """Make the import of a module fail, as if it were not installed; no effect on one that is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def _keep_list(import_utils: ModuleType) -> None:
    if hasattr(import_utils, "create_import_structure_from_path"):
        search = import_utils.create_import_structure_from_path
        import_utils.create_import_structure_from_path = _remembering(search)  # type: ignore[attr-defined]


def _remembering(search: Any) -> Any:
    """transformers' search of a folder, with the result for its folder of models kept for this and for later processes."""
    # Its own cache has 128 places, for 549 folders: the second search finds nothing of the first.
    search = functools.cache(getattr(search, "__wrapped__", search))

    @functools.cache
    def models(folder: str) -> Any:
        file = _index_file(folder)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _decode_dict(json.loads(file.read_text(encoding="utf-8")))
        found = search(folder)
        from bellwether.trainer.run_paths import publish

        with contextlib.suppress(OSError):  # no place to keep it: searched again the next time
            file.parent.mkdir(parents=True, exist_ok=True)
            publish(file, json.dumps(_encode(found)))
        return found

    def create_import_structure_from_path(module_path: Any) -> Any:
        folder = os.path.dirname(module_path) if os.path.isfile(module_path) else os.fspath(module_path)
        # Outside site-packages, somebody works on transformers itself, and its files change.
        installed = folder.startswith(sysconfig.get_path("purelib"))
        return models(folder) if installed and os.path.basename(folder) == "models" else search(module_path)

    return create_import_structure_from_path


def _index_file(models: str) -> Path:
    """The file with the list of models of one installation of transformers, as it is now."""
    import hashlib
    from importlib.metadata import version

    key = f"{models} {os.stat(models).st_mtime_ns} {version('transformers')}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "bellwether", f"transformers-models-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")


def _hide_scipy_from_losses(import_utils: ModuleType) -> None:
    """Let transformers find no SciPy until its models can be imported: those that use it find it."""
    find = getattr(import_utils, "is_scipy_available", None)
    if find is not None:

        def is_scipy_available() -> bool:
            models = sys.modules.get("transformers.modeling_utils")
            return hasattr(models, "PreTrainedModel") and bool(find())

        import_utils.is_scipy_available = is_scipy_available  # type: ignore[attr-defined]


def _encode(structure: Any) -> Any:
    """As JSON: a dictionary as {"items": pairs}; in its keys a list for a frozenset; in its values a list for a set."""
    if isinstance(structure, dict):
        keys = [key if isinstance(key, str) else sorted(key) for key in structure]
        return {"items": [[key, _encode(value)] for key, value in zip(keys, structure.values(), strict=True)]}
    return sorted(structure)


def _decode_dict(encoded: Any) -> dict[Any, Any]:
    return {key if isinstance(key, str) else frozenset(key): _decode(value) for key, value in encoded["items"]}


def _decode(encoded: Any) -> Any:
    return _decode_dict(encoded) if isinstance(encoded, dict) else set(encoded)
