"""Checkpoints keyed by parameter name: written by any number of ranks at any ZeRO stage, and loaded by any other.

    checkpoints/step-00001200/manifest.json       position in the run, shapes, checksums
    checkpoints/step-00001200/rank-00000.safetensors ...   the slices that each rank owns, listed in the file's header

A file contains tensors named ``kind|parameter|start``, where `start` is the offset of the slice in the flattened parameter.
Kinds are ``weight`` (the fp32 master weight), the names of the optimizer's state tensors, ``frozen``, ``buffer``, and ``carried``: the
state of streams of data (`bellwether.trainer.models.carried_state`), in place of a parameter. A
checkpoint is written to ``*.partial`` and published by one rename, so a directory without this suffix is complete. Nothing
is pickled.
"""

from bellwether.trainer.checkpoint.format import Manifest, Position, newest
from bellwether.trainer.checkpoint.load import exported_weights, load, load_into_model, newest_intact, read_manifest
from bellwether.trainer.checkpoint.save import path_of, save
from bellwether.trainer.checkpoint.saver import Saved, Saver

__all__ = [
    "Manifest",
    "Position",
    "Saved",
    "Saver",
    "exported_weights",
    "load",
    "load_into_model",
    "newest",
    "newest_intact",
    "path_of",
    "read_manifest",
    "save",
]
