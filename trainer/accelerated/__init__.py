"""A run under `accelerate launch`: what accelerate was asked for must be what the run does."""

from bellwether.trainer.accelerated.contradictions import check

__all__ = ["check"]
