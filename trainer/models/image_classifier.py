"""Any image classifier of transformers: ``model: {kind: image-classifier, config: ..., init: ...}``."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.models.architecture import Architecture, local_folder

if TYPE_CHECKING:
    from bellwether.trainer.config.schema.data import DataConfig
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task

log = logging.getLogger(__name__)


class ImageClassifierModel(Architecture):
    """Any AutoModelForImageClassification of transformers, such as ConvNeXt, ViT and ResNet, with fresh or pretrained weights."""

    data_kind: ClassVar[str] = "images"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy", "bce")
    assumed_classes: ClassVar[int] = 1000
    auto_class: ClassVar[str] = "AutoModelForImageClassification"

    kind: Literal["image-classifier"]

    def check_data(self, data: DataConfig) -> None:
        wanted = {
            "image_size": ("data.size", getattr(data, "size", None)),
            "num_channels": ("data.mean", getattr(data, "channels", None)),
        }
        for name, (key, value) in wanted.items():
            given = self.given_keys.get(name)
            if given is not None and given != value:
                raise ValueError(
                    f"{key}: the data have {name} {value}, and model.config.{name} is {given}; remove one of the two"
                )

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models import model_config, pretrained, residual
        from bellwether.trainer.models.norm import BatchNorm2d
        from bellwether.trainer.models.tasks import Classification

        data: Any = getattr(dataset.train, "config", None)
        fresh: dict[str, Any] = {} if self.init is not None else {"image_size": getattr(data, "size", None)}
        saved = model_config.make_config(self)
        if self.init is not None:
            _check_images(self.init, saved, dataset.channels, data)
        keys = {
            **residual.input_and_classes(dataset),
            **{k: v for k, v in fresh.items() if v is not None and hasattr(saved, k)},
        }
        model = pretrained.build(self, model_config.make_config(self, **keys))
        if self.init is not None and saved.num_labels == dataset.classes and _names(saved) != (dataset.labels or []):
            model_config.say(
                f"the head of {self.init} is kept: as many classes, with other names ({', '.join(_names(saved)[:4])}, ...)"
            )
        BatchNorm2d.replace(model)
        if activation_checkpointing:
            # ConvNeXt, for one, names its layers but does not support transformers' own checkpointing.
            layers = () if model.supports_gradient_checkpointing else model._no_split_modules or ()
            if not residual.checkpoint_blocks(model, layers):
                pretrained.checkpoint_activations(model)
        if data is not None:
            pretrained.check_input_size(model, data.zeros(2)["pixel_values"])
            if data.test_size is not None:
                held_out = data.model_copy(update={"size": data.test_size})
                pretrained.check_input_size(model, held_out.zeros(2)["pixel_values"], "data.test_size")
            if self.init is not None:
                _compare_normalization(self.init, data)
        return Classification(model)


def _names(config: Any) -> list[str]:
    return [name for _, name in sorted(config.id2label.items())]


def _check_images(init: str, config: Any, channels: int | None, data: Any) -> None:
    """Refuse images that pretrained weights cannot take.

    Raises:
        ConfigError: if the number of channels differs, or the size where positions are learned.
    """
    there = getattr(config, "num_channels", channels)
    if there != channels:
        problem = f"the weights of model.init are for {there} channels, the data have {channels}"
        raise ConfigError(
            "data.mean", getattr(data, "mean", None), problem, f"write {there} values in data.mean and data.std"
        )
    size = getattr(config, "image_size", None)
    if data is not None and getattr(config, "num_attention_heads", None) and size not in (None, data.size):
        problem = f"the weights of model.init have positions for images of {size} pixels"
        raise ConfigError("data.size", data.size, problem, f"write {size}")


def _compare_normalization(init: str, data: Any) -> None:
    """Say where the images are normalized otherwise than those that the weights were trained on."""
    from bellwether.trainer.models import model_config

    folder = local_folder(init)
    file = None if folder is None else folder / "preprocessor_config.json"
    if file is None or not file.is_file():
        return
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("model.init", init, f"{file} cannot be read: {error}", "restore or remove it") from None
    for key, name in (("mean", "image_mean"), ("std", "image_std")):
        there, here = saved.get(name), getattr(data, key)
        if there is not None and [round(v, 3) for v in there] != [round(v, 3) for v in here]:
            model_config.say(f"data.{key} is {here}; the weights of {init} were trained with {there}")
