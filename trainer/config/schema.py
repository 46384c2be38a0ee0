"""The keys of a config: each with its type, its unit, its default and what it is for.

`Config` is the whole of a run. `trainer.config.load` reads one from YAML and from the command line
and turns pydantic's complaints into messages that name file, key and value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.config.units import Duration, DurationField, IntervalField, Span, SpanField, TargetField

Share = Annotated[float, Field(ge=0, le=1)]
# The bound is far beyond any use, and keeps products of a few counts finite as floats.
Count = Annotated[int, Field(gt=0, le=2**40)]


class Section(BaseModel):
    """One mapping of the YAML file. Unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, populate_by_name=True, allow_inf_nan=False
    )


class BertModel(Section):
    """BERT for masked language modelling (Devlin et al. 2018; small sizes of Turc et al. 2019)."""

    kind: Literal["bert"]
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = Field(
        "base",
        description="layers/hidden: tiny 2/128, mini 4/256, small 4/512, medium 8/512, base 12/768, large 24/1024",
    )
    dropout: Share = Field(0.1, description="probability, for hidden states and attention alike")
    max_positions: Count = Field(512, description="longest sequence the position table can hold, in tokens")


class ResNetModel(Section):
    """ResNet of transformers, for ImageNet-like input (He et al. 2015)."""

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50, 101, 152] = Field(50, description="number of layers")
    zero_init_last: bool = Field(
        True, description="start the last BatchNorm weight of each block at 0 (Goyal et al. 2017)"
    )


class CifarResNetModel(Section):
    """The CIFAR ResNets of He et al. 2015, section 4.2: depth 6n + 2."""

    kind: Literal["cifar-resnet"]
    depth: Count = Field(20, description="number of layers, 6n + 2: 20, 32, 44, 56, 110")
    zero_init_last: bool = Field(
        False, description="start the last BatchNorm weight of each block at 0 (Goyal et al. 2017)"
    )
    norm: Literal["batch", "none"] = Field(
        "batch", description="none: no BatchNorm; Fixup's initialisation and scalars instead (Zhang et al. 2019)"
    )

    @model_validator(mode="after")
    def _depth(self) -> CifarResNetModel:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError("depth: a CIFAR ResNet has 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110")
        if self.norm == "none" and self.zero_init_last:
            raise ValueError("zero_init_last: there is no BatchNorm; take it out, or write norm: batch")
        return self


class WideResNetModel(Section):
    """Wide pre-activation ResNet (Zagoruyko and Komodakis 2016): depth 6n + 4."""

    kind: Literal["wide-resnet"]
    depth: Count = Field(22, description="number of layers, 6n + 4: 10, 16, 22, 28, 40")
    width: Count = Field(6, description="widening factor k; channels are 16k, 32k, 64k")
    zero_init_last: bool = Field(
        False, description="start the last BatchNorm weight of each block at 0 (Goyal et al. 2017)"
    )
    norm: Literal["batch", "none"] = Field(
        "batch", description="none: no BatchNorm; Fixup's initialisation and scalars instead (Zhang et al. 2019)"
    )

    @model_validator(mode="after")
    def _depth(self) -> WideResNetModel:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError("depth: a wide ResNet has 6n + 4 layers: 10, 16, 22, 28, 40")
        if self.norm == "none" and self.zero_init_last:
            raise ValueError("zero_init_last: there is no BatchNorm; take it out, or write norm: batch")
        return self


Model = Annotated[BertModel | ResNetModel | CifarResNetModel | WideResNetModel, Field(discriminator="kind")]


class _Data(Section):
    format: Literal["auto", "text", "parquet", "imagefolder", "hub"] = Field(
        "auto", description="how to read `source`; auto decides from the file names"
    )
    subset: str | None = Field(None, description="a hub dataset's configuration name")
    split: str = Field("train", description="the split to train on, for a hub dataset")
    validation: str | None = Field(
        None,
        description="held-out data: a path or glob, or a hub split's name; null holds out `validation_share`",
    )
    validation_share: Share = Field(0.05, description="share of the rows held out when `validation` is null")
    cache: str = Field("~/.cache/bellwether", description="directory of prepared data, shared by all runs")
    workers: Annotated[int, Field(ge=0)] = Field(
        2, description="processes a rank that prepare batches; 0: in the training process"
    )


class TextData(_Data):
    """Text for masked language modelling, packed into sequences without padding."""

    kind: Literal["text"]
    source: str = Field(
        "python-docs", description="python-docs (built in), a file, folder or glob, or a hub dataset's name"
    )
    column: str = Field("text", description="the column that holds the text")
    tokenizer: str = Field(
        "train",
        description="train (WordPiece on this corpus), a vocabulary file, a tokenizer folder, or a hub name",
    )
    vocabulary_size: Annotated[int, Field(ge=64, le=2**24)] = Field(
        30522, description="entries of a trained WordPiece vocabulary (a given one has its own size)"
    )
    lowercase: bool = Field(True, description="fold case and strip accents (trained vocabulary or vocabulary file)")
    sequence_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens a sequence, [CLS] and [SEP] included")
    mask_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of the tokens to predict")


class ImageData(_Data):
    """Labelled images for classification."""

    kind: Literal["images"]
    source: str = Field("digits", description="digits (built in), a folder or glob, or a hub dataset's name")
    image_column: str = Field("image", description="the column that holds the image")
    label_column: str = Field("label", description="the column that holds the class")
    size: Count = Field(32, description="height and width that the model sees, in pixels")
    crop: Literal["none", "pad", "resized"] = Field(
        "pad",
        description="training crop: pad by size/8 and cut (CIFAR), or random area and aspect (ImageNet)",
    )
    flip: bool = Field(True, description="mirror half of the training images")
    mean: list[float] = Field([0.5, 0.5, 0.5], description="per-channel mean of pixels in 0..1, subtracted")
    std: list[float] = Field([0.25, 0.25, 0.25], description="per-channel deviation of pixels in 0..1, divided by")

    @model_validator(mode="after")
    def _channels(self) -> ImageData:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("mean and std: one value a channel, 1 (grey) or 3 (RGB), the same number in both")
        if min(self.std) <= 0:
            raise ValueError("std: each value above 0")
        return self


Data = Annotated[TextData | ImageData, Field(discriminator="kind")]


class Batch(Section):
    """The unit of training. What a rank does at a time is solved from it and the world size."""

    global_: Count = Field(alias="global", description="samples a weight update, over all ranks")
    micro: Count = Field(32, description="most samples one rank takes through the model at a time (memory decides)")


_ADAM = {"betas", "eps", "decay", "trust_ratio", "trust_bounds"}
_RULES: dict[str, set[str]] = {
    "lamb": {*_ADAM, "amsgrad", "bias_correction", "prenormalize"},
    "lars": {"momentum", "nesterov", "trust_coefficient", "trust_bounds", "eps"},
    "adamw": {*_ADAM, "amsgrad"},
    "adam": {*_ADAM, "amsgrad"},
    "radam": _ADAM,
    "sgd": {"momentum", "nesterov", "decay", "trust_ratio", "trust_bounds"},
    "swats": {"betas", "eps", "decay", "amsgrad", "tolerance"},
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
        0.01, description="not applied to biases and normalisation; its unit depends on `decay`"
    )
    decay: Literal["l2", "decoupled", "independent", "prox", "prox-metric"] | None = Field(
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
        if self.name == "radam":
            given.setdefault("decay", "decoupled")
        if self.name == "sgd":
            given.setdefault("momentum", 0.9)
        return given

    @model_validator(mode="after")
    def _options(self) -> Optimizer:
        for key in sorted(set().union(*_RULES.values()) - _RULES[self.name]):
            if getattr(self, key) != type(self).model_fields[key].default:
                having = ", ".join(name for name, keys in _RULES.items() if key in keys)
                raise ValueError(f"{key}: {self.name} has none; take it out, or name one of {having}")
        if self.decay == "prox-metric" and (self.name in ("sgd", "swats") or self.trust_ratio or self.name == "lamb"):
            raise ValueError("decay: prox-metric is for adamw, adam and radam without a trust ratio; write prox")
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
        for key in sorted(set().union(*_AVERAGES.values()) - _AVERAGES[self.kind]):
            if getattr(self, key) != type(self).model_fields[key].default:
                having = " or ".join(kind for kind, keys in _AVERAGES.items() if key in keys)
                raise ValueError(f"{key}: kind: {self.kind} has none; take it out, or write kind: {having}")
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


class Evaluate(Section):
    """Held-out loss and accuracy."""

    every: IntervalField | None = Field(None, description="how often; null: only at the end of each phase")
    limit: Count | None = Field(None, description="most held-out samples to use; null: all")
    target: TargetField | None = Field(
        None, description="end the run at the first evaluation that shows it, as in accuracy >= 0.9 or loss <= 2.5"
    )
    augment: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="of images: views, cropped and mirrored as in training, whose predictions are averaged with the original's, "
        "for loss_augmented and accuracy_augmented beside the plain ones; 0: none",
    )


class Checkpoint(Section):
    """Saving, always at a step boundary and always at the end of each phase."""

    every: IntervalField | None = Field(None, description="how often; null: only at the end of each phase")
    keep: Count = Field(3, description="how many of the newest checkpoints stay")
    export: bool = Field(True, description="write the finished model to export/, as save_pretrained does")


class Log(Section):
    """Metrics on the terminal, in metrics.jsonl and in TensorBoard."""

    every: IntervalField = Field(Duration(10, "steps"), description="how often")
    tensorboard: bool = Field(True, description="write TensorBoard event files to logs/")
    report: bool = Field(True, description="write report.html at the end; bellwether report does it at any time")
    noise_scale: bool = Field(
        True,
        description="estimate the critical batch from gradient norms; costs a norm of each micro-batch's gradients",
    )


class Interpolate(Section):
    """The loss of a step's batch on the way from the weights before it to those after it."""

    every: IntervalField | None = Field(None, description="how often; null: at `steps` alone")
    steps: list[Count] = Field([], description="steps of the run, counted from 1")
    points: Annotated[int, Field(ge=2, le=1000)] = Field(
        11, description="evenly from the weights before the step to those after; each costs a forward pass of its batch"
    )


class Diagnose(Section):
    """Where the weights go (Xing et al. 2018, A Walk with SGD). Changes nothing of the training."""

    every: IntervalField | None = Field(
        None,
        description="how often to measure the cosine between two updates, the distance from the start, and norms; null: "
        "never. Keeps three copies of the shards' weights",
    )
    interpolate: Interpolate = Interpolate()


# What Bellwether solves itself; a second opinion in engine.deepspeed would win silently.
_OURS = {
    "train_batch_size": "batch.global",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.global and batch.micro",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_optimization.stage": "engine.stage",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
    "bfloat16": "engine.precision",
    "torch_autocast": "engine.precision",
    "amp": "engine.precision",
}


class Engine(Section):
    """How the work is split and in what precision. Nothing here changes which samples make up a step."""

    stage: Literal[0, 1, 2, 3] = Field(
        2, description="ZeRO: shard nothing, optimizer state, and gradients, and parameters"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of weights and activations in the model; masters stay fp32"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda with NCCL or cpu with gloo; auto: cuda where there is one"
    )
    world_size: Count | None = Field(None, description="refuse to run on another number of processes; null: any")
    collective_timeout: Annotated[float, Field(gt=0)] = Field(
        1800,
        description="seconds that a collective may take, and that the processes may take to meet, before the run ends",
    )
    heartbeat: Annotated[float, Field(ge=0)] = Field(
        60, description="seconds of silence of a process, or of its link, after which the run ends; 0: it never does"
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="keys passed on to DeepSpeed's config as they are"
    )

    @model_validator(mode="after")
    def _ours(self) -> Engine:
        for key, place in _OURS.items():
            section, _, inner = key.partition(".")
            given = self.deepspeed.get(section)
            if section in self.deepspeed and (not inner or (isinstance(given, dict) and inner in given)):
                raise ValueError(f"deepspeed.{key}: has a place of its own: set {place} instead")
        return self


class Config(Section):
    """One run, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="the run's directory under `runs`"
    )
    runs: str = Field("runs", description="directory that holds the run directories")
    resume: str = Field(
        "auto", description="auto (go on where the run directory stands), never, or a checkpoint's path"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        1,
        description="of weights, sample order, masking and augmentation, whatever the number of processes; and of dropout, which each process draws for itself",
    )
    duration: DurationField = Field(description="length of the run, or of each phase")
    stop_after: DurationField | None = Field(None, description="stop early, with a checkpoint, this far into the run")
    divergence: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="stop once the smoothed loss is this many times its lowest, or no number; what was saved before stays. null: never",
    )
    model: Model
    data: Data
    batch: Batch
    optimizer: Optimizer
    averaging: Averaging = Averaging()
    scaling: Scaling = Scaling()
    schedule: Schedule = Schedule()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    diagnose: Diagnose = Diagnose()
    engine: Engine = Engine()
    phases: list[dict[str, Any]] = Field(
        default_factory=list,
        description="parts of the run, one after the other; each says what differs from the keys above "
        "(duration, batch, data, optimizer, scaling, schedule)",
    )

    @model_validator(mode="after")
    def _fit(self) -> Config:
        wanted = "text" if self.model.kind == "bert" else "images"
        if self.data.kind != wanted:
            raise ValueError(f"data.kind: model.kind {self.model.kind} needs data.kind: {wanted}")
        if (
            isinstance(self.model, BertModel)
            and isinstance(self.data, TextData)
            and self.data.sequence_length > self.model.max_positions
        ):
            raise ValueError(
                f"data.sequence_length: {self.data.sequence_length} tokens do not fit "
                f"model.max_positions: {self.model.max_positions}"
            )
        if self.evaluate.augment and not (
            isinstance(self.data, ImageData) and (self.data.flip or self.data.crop != "none")
        ):
            raise ValueError(
                f"evaluate.augment: {self.evaluate.augment} views need images with data.crop or data.flip; take it out"
            )
        if self.schedule.scale_decay and self.optimizer.decay in ("independent", "prox"):
            raise ValueError(
                f"schedule.scale_decay: optimizer.decay: {self.optimizer.decay} follows the rate by itself; take it out"
            )
        return self
