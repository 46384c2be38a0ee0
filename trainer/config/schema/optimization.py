"""``optimizer``, ``averaging``, ``scaling``, ``schedule``: how the weights move."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import Count, Section, Share
from bellwether.trainer.config.units import Duration, IntervalField, Span, SpanField

_ADAM = {"betas", "eps", "weight_decay_mode", "trust_ratio", "trust_bounds"}
_RULES: dict[str, set[str]] = {
    "lamb": {*_ADAM, "amsgrad", "bias_correction", "prenormalize"},
    "lars": {"momentum", "nesterov", "trust_coefficient", "trust_bounds", "eps"},
    "adamw": {*_ADAM, "amsgrad"},
    "adam": {*_ADAM, "amsgrad"},
    "radam": _ADAM,
    "sgd": {"momentum", "nesterov", "weight_decay_mode", "trust_ratio", "trust_bounds"},
    "swats": {"betas", "eps", "weight_decay_mode", "amsgrad", "tolerance"},
}


class Optimizer(Section):
    """How weights move. See the package `optimizers`, and docs/optimizers.md for which to take."""

    name: Literal["lamb", "lars", "adamw", "adam", "radam", "sgd", "swats"] = Field(
        "lamb", description="the update rule; swats: AdamW, then SGD"
    )
    lr: Annotated[float, Field(gt=0)] = Field(
        description="peak learning rate, at the batch `scaling.base_batch` if that is given"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="decay of the first and of the second moment"
    )
    eps: Annotated[float, Field(gt=0)] | None = Field(
        None, description="added to the denominator; null: the rule's own default"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="not applied to biases and normalisation; its unit depends on `weight_decay_mode`"
    )
    weight_decay_mode: Literal["l2", "decoupled", "independent", "prox", "prox-metric"] | None = Field(
        None, description="form of the weight decay; null: decoupled, or l2 for adam and sgd (lars has l2 alone)"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="of lars and sgd; null: 0.9")
    nesterov: bool | None = Field(None, description="of lars and sgd; null: false")
    amsgrad: bool | None = Field(None, description="divide by the largest second moment so far; null: false")
    bias_correction: bool | None = Field(None, description="of lamb's moments; null: true")
    trust_ratio: bool | None = Field(
        None, description="scale each layer's update to its weights; null: true for lamb, false for the others"
    )
    trust_bounds: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] | None = Field(
        None, description="lowest and highest trust ratio; null: no bounds"
    )
    trust_coefficient: Annotated[float, Field(gt=0)] | None = Field(None, description="of lars; null: 0.001")
    prenormalize: bool | None = Field(
        None, description="lamb on gradients divided by their global norm, as NVIDIA's; null: false"
    )
    tolerance: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of swats, in units of a learning rate of SGD: how well it has settled; null: 1e-9"
    )
    loss_factor: Annotated[float, Field(gt=0)] = Field(
        1.0,
        description="multiplies the loss before the backward pass, to see whether a rule minds; reported losses are without "
        "it, gradient norms with it",
    )
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest global gradient norm; 0: no clipping")
    kernel: Literal["auto", "reference", "cpu", "triton"] = Field(
        "auto", description="what computes the update; auto: compiled code where it can be had, else torch"
    )

    def options(self) -> dict[str, Any]:
        """What the rule's constructor is to be given, lr included: what the config leaves out is the rule's default."""
        given = self.model_dump(exclude_none=True, include={*_RULES[self.name], "lr", "weight_decay", "kernel"})
        if "weight_decay_mode" in given:
            given["decay"] = given.pop("weight_decay_mode")
        if self.name == "radam":
            given.setdefault("decay", "decoupled")
        if self.name == "sgd":
            given.setdefault("momentum", 0.9)
        return given

    @model_validator(mode="after")
    def _options(self) -> Optimizer:
        self.refuse_others("name", _RULES)
        no_metric = self.name in ("lamb", "sgd", "swats") or self.trust_ratio
        if self.weight_decay_mode == "prox-metric" and no_metric:
            raise ValueError(
                "weight_decay_mode: prox-metric is for adamw, adam and radam without a trust ratio; write prox"
            )
        if self.trust_bounds is not None:
            if self.trust_bounds[0] > self.trust_bounds[1]:
                raise ValueError("trust_bounds: the lowest first, then the highest")
            if self.trust_ratio is False or (self.trust_ratio is None and self.name not in ("lamb", "lars")):
                raise ValueError("trust_bounds: there is no trust ratio; write trust_ratio: true, or take it out")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum above 0, as in momentum: 0.9")
        return self


_AVERAGES: dict[str, set[str]] = {
    "none": set(),
    "swa": {"start", "every", "batch_norm"},
    "ema": {"start", "every", "batch_norm", "decay"},
    "lookahead": {"k", "alpha"},
}


class Averaging(Section):
    """Averages of the weights around the optimizer. Those of swa and ema are evaluated beside the weights, and exported."""

    kind: Literal["none", "swa", "ema", "lookahead"] = Field(
        "none",
        description="swa: their mean (Izmailov et al. 2018); ema: with a fading memory; lookahead: slow weights that the fast "
        "ones go back to (Zhang et al. 2019)",
    )
    start: SpanField = Field(
        Span(share=0.75), description="where swa and ema begin: a share of the last phase, or a duration into it"
    )
    every: IntervalField = Field(Duration(1, "steps"), description="how often swa and ema take the weights")
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="of ema: what the average keeps of itself")
    batch_norm: Count = Field(
        4096, description="training samples from which swa and ema compute BatchNorm's statistics; at most an epoch"
    )
    k: Count = Field(5, description="of lookahead: steps between two returns to the slow weights")
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="of lookahead: how far the slow weights go")

    @model_validator(mode="after")
    def _keys(self) -> Averaging:
        self.refuse_others("kind", _AVERAGES)
        return self


class Scaling(Section):
    """Learning rate and warm-up from the batch (Goyal et al. 2017; You et al. 2019, tables 4 and 5)."""

    rule: Literal["none", "linear", "sqrt"] = Field(
        "none", description="lr = optimizer.lr x (batch.global / base_batch) to the power 0, 1 or 1/2"
    )
    base_batch: Count | None = Field(
        None, description="the global batch at which optimizer.lr and schedule.warmup were chosen, in samples"
    )
    warmup: bool = Field(True, description="lengthen the warm-up, in samples, in proportion to the batch")

    @model_validator(mode="after")
    def _base(self) -> Scaling:
        if self.rule != "none" and self.base_batch is None:
            raise ValueError(f"base_batch: state the batch at which optimizer.lr was chosen, for rule: {self.rule}")
        return self


class Schedule(Section):
    """The learning rate over a phase, counted in samples."""

    recipe: str | None = Field(
        None,
        description="the published recipe that these keys come from; schedule: NAME fills them in, and the optimizer's",
    )
    kind: Literal["constant", "linear", "polynomial", "cosine", "trapezoid", "step", "exponential"] = Field(
        "linear", description="shape after the warm-up; exponential: from `start` to `final`, without one"
    )
    warmup: SpanField = Field(
        Span(share=0.0), description="linear rise from `start`: a share of the phase, or a duration"
    )
    start: Share = Field(0.0, description="learning rate at the beginning of the warm-up, as a share of the peak")
    power: Annotated[float, Field(gt=0)] = Field(1.0, description="exponent of the polynomial decay")
    cooldown: SpanField = Field(
        Span(share=0.2), description="linear fall at the end of a trapezoid: a share, or a duration"
    )
    milestones: list[SpanField] = Field(
        [], description="where kind: step falls, from the phase's beginning: shares of it, or durations"
    )
    drop: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="what each fall of kind: step multiplies by")
    final: Share = Field(0.0, description="learning rate at the end, as a share of the peak")
    momentum: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None, description="highest and lowest momentum (beta1), lowest where the rate is highest, as in 1cycle"
    )
    scale_decay: bool = Field(False, description="let the weight decay follow the rate")

    @model_validator(mode="after")
    def _momentum(self) -> Schedule:
        if self.momentum is not None and self.momentum[0] < self.momentum[1]:
            raise ValueError("momentum: the highest first, then the lowest, as in [0.95, 0.85]")
        if (self.kind == "step") != bool(self.milestones):
            raise ValueError(
                "milestones: go with kind: step, and with no other, as in [30 epochs, 60 epochs, 80 epochs]"
            )
        if self.kind == "exponential" and not (self.start and self.final and self.warmup.share == 0):
            raise ValueError("kind: exponential goes from start to final, both above 0, without warmup; write these")
        return self
