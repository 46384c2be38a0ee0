"""The reference of the scaling simulation: BERT, and one step of Lamb on its whole parameters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import transformers
from torch import Tensor, nn

from bellwether.optimizers import Lamb, groups


@dataclass
class Truth:
    """One step of Lamb on whole parameters, without an engine. By name."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    moved: dict[str, Tensor]  # the weights after the step
    ratios: dict[str, float]
    options: dict[str, dict[str, Any]]  # of the param group

    @classmethod
    def of(cls, model: nn.Module) -> Truth:
        weights = {name: p.detach() for name, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        gradients = {name: torch.randn(w.shape, generator=generator).mul_(1e-3) for name, w in weights.items()}
        options = {
            name: {key: value for key, value in group.items() if key != "params"}
            for group in groups(model)
            for name, _ in group["params"]
        }
        moved: dict[str, nn.Parameter] = {}
        ratios: dict[str, float] = {}
        for name, weight in weights.items():
            moved[name] = nn.Parameter(weight.clone())
            optimizer = Lamb([{"params": [(name, moved[name])], **options[name]}])
            prime(optimizer, moved[name], gradients[name])
            optimizer.step()
            ratios |= optimizer.trust_ratios()
            moved[name].grad = None
        return cls(weights, gradients, {name: p.detach() for name, p in moved.items()}, ratios, options)


def prime(optimizer: Lamb, tensor: Tensor, gradient: Tensor) -> None:
    """Set moments as in the middle of training: not zero, and computed from the weights, however they are sharded."""
    weights = tensor.detach()
    optimizer.state[tensor] = {"step": torch.tensor(4.0), "exp_avg": 0.1 * weights, "exp_avg_sq": weights.square()}
    tensor.grad = gradient


def bert(small: bool) -> nn.Module:
    """BERT-large with its two heads, random weights; or a tiny one."""
    torch.manual_seed(0)
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    tiny = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, vocab_size=997)
    return transformers.BertForPreTraining(transformers.BertConfig(**(tiny if small else large)))


def some(world: int) -> list[int]:
    """The first rank, one in the middle, and the last."""
    return sorted({0, world // 2, world - 1})
