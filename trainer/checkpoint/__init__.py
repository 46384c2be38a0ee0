"""Checkpoints keyed by parameter name: written by any number of ranks at any ZeRO stage, read by any other.

    checkpoints/step-00001200/manifest.json       where it stands, shapes, what is where, checksums
    checkpoints/step-00001200/rank-00000.safetensors ...   what each rank owns

A file holds tensors named ``kind|parameter|start``: `start` is the place of this piece in the flattened parameter;
kinds are ``weight`` (the fp32 master), the optimizer's state names, ``frozen`` and ``buffer``. All is written into
``*.partial`` and published by one rename, so a directory without a suffix is whole. No pickle.
"""

from bellwether.trainer.checkpoint.format import Manifest, Position, newest
from bellwether.trainer.checkpoint.load import load, load_into_model, newest_intact
from bellwether.trainer.checkpoint.save import save

__all__ = ["Manifest", "Position", "load", "load_into_model", "newest", "newest_intact", "save"]
