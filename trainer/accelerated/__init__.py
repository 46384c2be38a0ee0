"""A run under `accelerate launch`: settings of accelerate that contradict the run's config are refused."""

from bellwether.trainer.accelerated.contradictions import check

__all__ = ["check"]
