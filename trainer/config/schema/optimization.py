"""``optimizer``, ``averaging``, ``scaling``, ``schedule``: how the weights are updated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bellwether.optimizers.registry import OPTIMIZERS, is_layer_wise
from bellwether.trainer.config.schema.section import FRACTION, SAMPLES, STEPS, Count, Section, Share, unit
from bellwether.trainer.config.units import Duration, IntervalField, Span, SpanField

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]


#: keys of `Optimizer` that hold patterns of parameter names
PATTERNS = ("include", "exclude", "muon_exclude", "lr_scale", "freeze")


class Optimizer(Section):
    """The optimizer. docs/optimizers.md describes when to use which."""

    name: OptimizerName = Field(
        "lamb",
        description="the update rule; swats starts as AdamW and switches to SGD; schedule-free-adamw averages, and has a constant learning rate; soap is not sharded",
    )
    lr: Annotated[float, Field(gt=0)] = Field(
        description="peak learning rate; if `scaling.base_batch` is set, the rate at that batch size"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None,
        description="exponential decay rates of the first and the second moment, as in [0.9, 0.999]; null: the default of the optimizer",
    )
    eps: Annotated[float, Field(gt=0)] | None = Field(
        None, description="added to the denominator for numerical stability; null: the default of the optimizer"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01,
        description="weight decay coefficient, not applied to biases and normalisation layers; its scale depends on `weight_decay_mode`",
    )
    weight_decay_mode: Literal["l2", "decoupled", "independent", "prox", "prox-metric"] | None = Field(
        None, description="form of the weight decay; null: decoupled, or l2 for adam and sgd (lars supports l2 only)"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="momentum of lars, sgd and muon; null: 0.9 (muon: 0.95)"
    )
    nesterov: bool | None = Field(
        None, description="Nesterov momentum for lars, sgd and muon; null: false (muon: true)"
    )
    amsgrad: bool | None = Field(None, description="AMSGrad: divide by the largest second moment so far; null: false")
    bias_correction: bool | None = Field(None, description="bias correction of lamb's moments; null: true")
    trust_ratio: bool | None = Field(
        None,
        description="scale the update of each layer by the ratio of its weight norm to its update norm; null: true for lamb, "
        "false for the others",
    )
    trust_bounds: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] | None = Field(
        None, description="lower and upper bound of the trust ratio; null: no bounds"
    )
    trust_coefficient: Annotated[float, Field(gt=0)] | None = Field(
        None, description="trust coefficient of lars; null: 0.001"
    )
    prenormalize: bool | None = Field(
        None,
        description="lamb only: divide all gradients by their global norm first, also where it is below 1, as NVIDIA's article on NVLAMB describes (its code clips: optimizer.clip 1.0); null: false",
    )
    tolerance: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="swats only: switch to SGD when the estimate of its learning rate differs from its running average by less than this; null: 1e-9",
        json_schema_extra=unit("learning rate"),
    )
    adam_lr: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="muon only: peak learning rate of the parameters that AdamW updates (embeddings, output layer, normalization, "
        "biases); follows the same schedule and scaling as lr; null: lr",
    )
    adam_eps: Annotated[float, Field(gt=0)] | None = Field(None, description="muon only: eps of AdamW; null: 1e-8")
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = Field(
        None,
        description="muon only: size of a matrix's update; original: sqrt(max(1, rows / columns)); match_rms_adamw: 0.2 sqrt(max("
        "rows, columns)), with which learning rates of AdamW suit; null: original",
    )
    ns_steps: Annotated[int, Field(ge=0, lt=100)] | None = Field(
        None, description="muon only: iterations of Newton-Schulz; null: 5", json_schema_extra=unit("iterations")
    )
    ns_coefficients: tuple[float, float, float] | None = Field(
        None, description="muon only: coefficients of an iteration of Newton-Schulz; null: [3.4445, -4.775, 2.0315]"
    )
    ns_dtype: Literal["bf16", "fp16", "fp32", "fp64"] | None = Field(
        None, description="muon only: dtype of Newton-Schulz, and of the matrices that travel between ranks; null: bf16"
    )
    r: Annotated[float, Field(ge=0)] | None = Field(
        None, description="schedule-free-adamw only: power of the step in the weights of the average; null: 0"
    )
    weight_lr_power: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="schedule-free-adamw only: power of the highest learning rate so far in the weights of the average; null: 2",
    )
    shampoo_beta: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="soap only: decay rate of Shampoo's matrices; null: the second of betas"
    )
    precondition_frequency: Count | None = Field(
        None, description="soap only: interval between updates of the eigenvectors; null: 10", json_schema_extra=STEPS
    )
    max_precond_dim: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="soap only: dimensions above this have no eigenvectors, as Adam; null: 10000",
        json_schema_extra=unit("elements"),
    )
    precondition_1d: bool | None = Field(None, description="soap only: whether vectors have eigenvectors; null: false")
    include: list[str] = Field(
        [],
        description='patterns of parameter names, as in ["*.position_embeddings.weight"], that get weight decay and a trust ratio in any '
        "case; where `exclude` matches too, `include` holds",
    )
    exclude: list[str] = Field(
        [],
        description="patterns of parameter names that get neither weight decay nor a trust ratio, in addition to biases, vectors and "
        "normalization layers",
    )
    muon_exclude: list[str] = Field(
        [],
        description='muon only: patterns of names of matrices that AdamW updates, as in ["*.gate.*"], in addition to embeddings and the output '
        "layer",
    )
    freeze: list[str] = Field(
        [],
        description='patterns of parameter names that are not trained, as in ["model.bert.*"] to train the head first; where a phase changes them, '
        "the optimizer's state starts anew",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="factor of the learning rate from each layer to the one below it, 1 for the head and least for the embeddings "
        "(ELECTRA, BEiT); null: none",
        json_schema_extra=unit("factor"),
    )
    lr_scale: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description='factors of the learning rate by pattern of parameter names, as in {"*.classifier.*": 10}; the first pattern '
        "that matches holds, those of an extended file come first",
    )
    stochastic_rounding: bool = Field(
        False,
        description="round the updates of 16-bit weights up or down at random, right on average; for "
        "`engine.deepspeed: {bf16: {bf16_master_weights_and_grads: true}}`, which keeps no fp32 weights",
    )
    kahan_sum: bool = Field(
        False,
        description="keep what rounding cuts off from 16-bit weights in a second 16-bit tensor; for the same engines as "
        "`stochastic_rounding`",
    )
    loss_factor: Annotated[float, Field(gt=0)] = Field(
        1.0,
        description="the loss is multiplied by this factor before the backward pass, to test an optimizer's scale invariance; "
        "logged losses exclude the factor, logged gradient norms include it",
        json_schema_extra=unit("factor"),
    )
    clip: Annotated[float, Field(ge=0)] = Field(
        1.0, description="gradient clipping: upper bound of the global gradient norm; 0: no clipping"
    )
    kernel: Literal["auto", "reference", "cpu", "triton"] = Field(
        "auto",
        description="implementation of the update; auto: the compiled kernel of the device if it can be built, else torch",
    )

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the optimizer's constructor, lr included. Unset keys are left to its defaults."""
        entry = OPTIMIZERS[self.name]
        given = self.model_dump(exclude_none=True, include={*entry.options, "lr", "weight_decay", "kernel"})
        return {**entry.defaults, **given}

    @model_validator(mode="after")
    def _options(self) -> Optimizer:
        entry = OPTIMIZERS[self.name]
        self.refuse_others(
            "name", {name: {*other.options, *other.grouping_options} for name, other in OPTIMIZERS.items()}
        )
        if self.weight_decay_mode == "prox-metric" and (not entry.prox_metric or self.trust_ratio):
            *others, last = [name for name, other in OPTIMIZERS.items() if other.prox_metric]
            raise ValueError(
                f"weight_decay_mode: prox-metric is for {', '.join(others)} and {last} without a trust ratio; write prox"
            )
        if self.trust_bounds is not None:
            if self.trust_bounds[0] > self.trust_bounds[1]:
                raise ValueError("trust_bounds: the lowest first, then the highest")
            if not is_layer_wise(self.name, self.trust_ratio):
                raise ValueError("trust_bounds: there is no trust ratio; write trust_ratio: true, or remove it")
        if self.stochastic_rounding and self.kahan_sum:
            raise ValueError(
                "kahan_sum: either option alone makes small updates count; remove stochastic_rounding or it"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum above 0, as in momentum: 0.9")
        return self


_AVERAGES: dict[str, set[str]] = {
    "none": {"batch_norm"},  # of schedule-free-adamw; `Config` refuses it for the others
    "swa": {"start", "every", "batch_norm"},
    "ema": {"start", "every", "batch_norm", "decay"},
    "lookahead": {"k", "alpha"},
}


class Averaging(Section):
    """Averages of the weights. Those of swa and ema are evaluated in addition to the weights, and exported."""

    kind: Literal["none", "swa", "ema", "lookahead"] = Field(
        "none",
        description="swa: mean of the weights (Izmailov et al. 2018); ema: exponential moving average; lookahead: slow weights "
        "to which the weights are reset every `k` steps (Zhang et al. 2019)",
    )
    start: SpanField = Field(Span(share=0.75), description="where in the last phase swa and ema begin")
    every: IntervalField = Field(Duration(1, "steps"), description="interval at which swa and ema include the weights")
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="decay rate of ema per update of the average")
    batch_norm: Count = Field(
        4096,
        description="number of training samples from which swa, ema and optimizer.name: schedule-free-adamw recompute the BatchNorm statistics; at most one epoch is used",
        json_schema_extra=SAMPLES,
    )
    k: Count = Field(5, description="lookahead: interval between updates of the slow weights", json_schema_extra=STEPS)
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="lookahead: step size of the slow weights", json_schema_extra=FRACTION
    )

    @model_validator(mode="after")
    def _keys(self) -> Averaging:
        self.refuse_others("kind", _AVERAGES)
        return self


class Scaling(Section):
    """Scaling of learning rate and warm-up with the batch (Goyal et al. 2017; You et al. 2019, tables 4 and 5)."""

    rule: Literal["none", "linear", "sqrt"] = Field(
        "none", description="learning rate = optimizer.lr x (batch.global / base_batch)^p, where p is 0, 1 or 1/2"
    )
    base_batch: Count | None = Field(
        None,
        description="global batch at which optimizer.lr and schedule.warmup were chosen",
        json_schema_extra=SAMPLES,
    )
    warmup: bool = Field(True, description="lengthen the warm-up, counted in samples, in proportion to the batch")

    @model_validator(mode="after")
    def _base(self) -> Scaling:
        if self.rule != "none" and self.base_batch is None:
            raise ValueError(f"base_batch: state the batch at which optimizer.lr was chosen, for rule: {self.rule}")
        return self


class Schedule(Section):
    """The learning rate over a phase, as a function of the samples seen."""

    recipe: str | None = Field(
        None,
        description="a published recipe; `schedule: NAME` fills in the keys of this section and of `optimizer`",
    )
    kind: Literal[
        "constant", "linear", "polynomial", "cosine", "trapezoid", "step", "warmup-exponential", "exponential"
    ] = Field(
        "linear", description="shape after the warm-up; exponential goes from `start` to `final` without a warm-up"
    )
    warmup: SpanField = Field(Span(share=0.0), description="length of the linear warm-up from `start` to the peak")
    start: Share = Field(
        0.0,
        description="learning rate at the beginning of the warm-up, as a fraction of the peak",
        json_schema_extra=FRACTION,
    )
    warmup_power: Annotated[float, Field(gt=0)] = Field(
        1.0, description="exponent of the warm-up: 1 rises on a line, 2 on a parabola"
    )
    decay_from: Literal["warmup", "start"] = Field(
        "warmup",
        description="where the decay begins (linear, polynomial, cosine). start: it is a curve over the whole phase, to which the "
        "rate drops after the warm-up, as in the published code of BERT",
    )
    power: Annotated[float, Field(gt=0)] = Field(1.0, description="exponent of the polynomial decay")
    cooldown: SpanField = Field(Span(share=0.2), description="length of the linear decay at the end of a trapezoid")
    milestones: list[SpanField] = Field(
        [], description="points of the phase at which `kind: step` multiplies the learning rate by `drop`"
    )
    drop: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1,
        description="factor at each milestone of `kind: step`, and in each `interval` of `kind: warmup-exponential`",
        json_schema_extra=unit("factor"),
    )
    interval: SpanField | None = Field(
        None, description="of `kind: warmup-exponential`, which decays by `drop` in each, towards `final`"
    )
    final: Share = Field(
        0.0, description="learning rate at the end, as a fraction of the peak", json_schema_extra=FRACTION
    )
    momentum: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None,
        description="highest and lowest momentum (beta1), cycled inversely to the learning rate as in 1cycle; null: constant",
    )
    scale_decay: bool = Field(False, description="scale the weight decay with the learning rate")

    @model_validator(mode="after")
    def _momentum(self) -> Schedule:
        if self.momentum is not None and self.momentum[0] < self.momentum[1]:
            raise ValueError("momentum: the highest first, then the lowest, as in [0.95, 0.85]")
        if (self.kind == "step") != bool(self.milestones):
            raise ValueError(
                "milestones: go with kind: step, and with no other, as in [30 epochs, 60 epochs, 80 epochs]"
            )
        if (self.kind == "warmup-exponential") != (self.interval is not None):
            raise ValueError("interval: goes with kind: warmup-exponential, and with no other, as in 250 steps")
        if self.decay_from == "start" and self.kind not in ("linear", "polynomial", "cosine"):
            raise ValueError(f"decay_from: start goes with linear, polynomial and cosine, not with {self.kind}")
        if self.kind == "exponential" and not (self.start and self.final and self.warmup.share == 0):
            raise ValueError("kind: exponential goes from start to final, both above 0, without warmup; write these")
        return self
