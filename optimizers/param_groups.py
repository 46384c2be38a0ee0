"""Builds param groups from a model: with and without weight decay and trust ratio, and with learning rates by layer."""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from bellwether.optimizers.norm_layers import is_norm as is_norm

# The word bias in a parameter's own name: bias, in_proj_bias, bias_ih_l0, pos_bias_u, relative_position_bias_table.
_BIAS = re.compile(r"(?:^|_)bias(?:es)?(?:$|_|\d)", re.IGNORECASE)
# A module whose weight is a bias, as T5's relative_attention_bias, or a list of biases.
_BIAS_MODULE = re.compile(r"(?:^|_)bias(?:es)?$", re.IGNORECASE)
# Scales of channels, with any number of dimensions of size 1: LayerScale's gamma [channels, 1, 1], weight_norm's g.
_SCALE = re.compile(r"(?:^|_)(?:gamma|beta|gain|scale|lambda|ls|g|original0)(?:$|_|\d)", re.IGNORECASE)
# Embeddings that are parameters of their own, as pos_embed and cls_token of a ViT, and modules with a table that are not torch's.
_EMBEDDING = re.compile(r"embed|token|position|(?:^|_)(?:embs?|wte|wpe)(?:$|_|\d)", re.IGNORECASE)
_EMBEDDING_MODULE = re.compile(r"Embeddings?(?:Bag)?$")


def groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    lr: float | None = None,
    layer_decay: float | None = None,
    lr_scale: Mapping[str, float] | None = None,
    names: bool = True,
    muon: bool = False,
    muon_exclude: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Param groups: weights; and biases, vectors and normalization, which get neither weight decay nor a trust ratio.

    The second kind is every parameter of fewer than two dimensions (of its whole shape, also under
    ``deepspeed.zero.Init``), every bias by name, and all parameters of normalization layers.

    Args:
        model: any module. Frozen parameters are left out; a tied parameter appears once, under its first name.
        weight_decay: of the first kind; None: the optimizer's default.
        include: patterns of names (as in a shell: ``*.cls_token``) that get weight decay and trust ratio in any case.
        exclude: patterns of names that get neither; if both match, `include` holds.
        lr: what `layer_decay` and `lr_scale` refer to; None: the lr of the optimizer, which must be of this package.
        layer_decay: factor of the learning rate from each layer to the one below it (ELECTRA, 2003.10555; BEiT,
            2106.08254): 1 for the head, then less in each block, least for the embeddings. Blocks are the members of
            the outermost ModuleLists and Sequentials, in the model's order.
        lr_scale: pattern of names -> factor of the learning rate; that of the first pattern that matches.
        names: False for engines that want bare parameters: ZeroRedundancyOptimizer, DeepSpeed's MoE. Groups have a
            ``name`` instead.
        muon: for `bellwether.optimizers.Muon`: matrices in groups of their own, and all that AdamW updates in groups with
            ``muon=False``: the second kind, embeddings, output layers, and matrices of one row or column. Output layers are what
            the model's get_output_embeddings() or get_classifier() returns, and its last Linear, unless that is in a ModuleList.
        muon_exclude: patterns of names of further parameters for AdamW.

    Returns:
        param groups for any optimizer of this package, with names (``param_names``). No group is empty.

    Raises:
        ValueError: for a pattern that matches no parameter, and for factors out of range.

    >>> [len(group["params"]) for group in groups(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))]
    [1, 3]
    """
    trainable = [(name, p) for name, p in named(model) if p.requires_grad]
    everything = [name for name, _ in named(model)]
    for pattern in (*include, *exclude, *muon_exclude, *(lr_scale or ())):
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise ValueError(f"pattern {pattern!r} matches no parameter; {nearest(pattern, everything)}")
    scales = _layer_scales(everything, layer_decay) if layer_decay is not None else {}
    in_norms = {id(p) for module in model.modules() if is_norm(module) for p in module.parameters(recurse=False)}
    for_adam = _not_hidden(model) if muon else set()
    found: dict[tuple[bool, bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trainable:
        if matches(name, include):
            excluded = False
        else:
            excluded = matches(name, exclude) or id(parameter) in in_norms or _is_vector_or_bias(name, parameter)
        scale = scales.get(name, 1.0)
        scale *= next((factor for pattern, factor in (lr_scale or {}).items() if fnmatchcase(name, pattern)), 1.0)
        if not 0 <= scale < float("inf"):
            raise ValueError(f"learning rate of {name} times {scale}: must be a finite number, at least 0")
        is_matrix = muon and not excluded and id(parameter) not in for_adam and not matches(name, muon_exclude)
        found.setdefault((excluded, is_matrix, scale), []).append((name, parameter))
    result = []
    for (excluded, is_matrix, scale), params in sorted(found.items(), key=lambda i: (i[0][0], not i[0][1], -i[0][2])):
        group: dict[str, Any] = {"params": params if names else [p for _, p in params]}
        if not names:
            kind = "others" if excluded else "matrices" if is_matrix else "weights"
            group["name"] = kind + (f"-{scale:g}" if scale != 1 else "")
        if muon:
            group["muon"] = is_matrix
        if excluded:
            group.update(weight_decay=0.0, trust_ratio=False)
        elif weight_decay is not None:
            group["weight_decay"] = weight_decay
        if lr is not None:
            group["lr"] = lr * scale
        elif scale != 1:
            group["lr_scale"] = scale
        result.append(group)
    return result


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The whole shape of a parameter; `deepspeed.zero.Init` leaves it one of (0,)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def nearest(pattern: str, names: Sequence[str]) -> str:
    """What to write instead of a pattern that matches none of these names: those whose parts are like those of the pattern."""
    wanted = [part for part in re.split(r"[.*?\[\]]+", pattern) if part]

    @functools.cache
    def ratio(part: str, other: str) -> float:
        return difflib.SequenceMatcher(None, part, other).ratio()

    def similarity(name: str) -> float:
        return sum(max(ratio(part, other) for other in name.split(".")) for part in wanted)

    near = sorted(names, key=similarity, reverse=True)[:3]
    return f"the nearest of {len(names):,} names: {', '.join(near)}"


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _not_hidden(model: nn.Module) -> set[int]:
    """The ids of parameters that are no hidden matrices: embeddings, the output layer, a single row or column."""
    found = {id(parameter) for parameter in _output_layers(model)}
    for module in model.modules():
        is_table = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or _EMBEDDING_MODULE.search(
            type(module).__name__
        )
        for name, parameter in module.named_parameters(recurse=False):
            rows, *others = shape_of(parameter) or (1,)
            if is_table or _EMBEDDING.search(name) or min(rows, math.prod(others)) == 1:
                found.add(id(parameter))
    return found


def _output_layers(model: nn.Module) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    for getter in ("get_output_embeddings", "get_classifier"):  # of transformers and timm
        with contextlib.suppress(AttributeError, NotImplementedError, TypeError):
            layer = getattr(model, getter)()
            if isinstance(layer, nn.Module) and any(True for _ in layer.parameters()):
                found += layer.parameters()
    lists = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if linear and not linear[-1][0].startswith(lists):
        found += linear[-1][1].parameters()
    return found


def _is_vector_or_bias(name: str, parameter: nn.Parameter) -> bool:
    shape = shape_of(parameter)
    # As under torch.nn.utils.parametrize: ...parametrizations.weight.original0
    path = [part for part in name.split(".") if part != "parametrizations"]
    own = path[-1]
    if re.fullmatch(r"original", own) and len(path) > 1:
        own = path[-2]
    is_scale = sum(n > 1 for n in shape) <= 1 and _SCALE.search(own) is not None
    is_bias = _BIAS.search(own) is not None or any(_BIAS_MODULE.search(part) for part in path[-2:-1])
    return len(shape) < 2 or is_scale or is_bias


def _layer_scales(names: list[str], layer_decay: float) -> dict[str, float]:
    """The factor of each parameter: 1 for the last layer. Embeddings before the first block are layer 0."""
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay!r}: must be above 0 and at most 1")
    depth, last_block = 0, -1
    blocks: dict[str, int] = {}
    depths: list[int] = []
    for i, name in enumerate(names):
        block = re.match(r"(?:.*?\.)??\d+(?=\.)", name)
        if block is not None:
            depth, last_block = blocks.setdefault(block.group(), len(blocks) + 1), i
        depths.append(depth)  # what has no number goes with the block before it
    top = len(blocks) + (last_block < len(names) - 1)
    depths[last_block + 1 :] = [top] * (len(names) - last_block - 1)
    return {name: layer_decay ** (top - depth) for name, depth in zip(names, depths, strict=True)}


def named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters in the model's order, under the same names with and without torch.compile."""
    return ((name.replace("_orig_mod.", ""), parameter) for name, parameter in model.named_parameters())
