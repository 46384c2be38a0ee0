"""Residual networks for small images: the CIFAR ResNets, and wide ResNets.

This file imports torch and transformers only: `save_pretrained` copies it next to the weights, so that

    AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)

works without Bellwether installed.

Sources: He et al. 2015 (1512.03385), section 4.2; Zagoruyko and Komodakis 2016 (1605.07146); without BatchNorm, Fixup: Zhang,
Dauphin and Ma 2019 (1901.09321).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class CifarResNetConfig(PretrainedConfig):
    """A ResNet of ``depth`` 6n + 2: three stages of n blocks with 16, 32 and 64 channels."""

    model_type = "bellwether-cifar-resnet"

    def __init__(self, depth: int = 20, num_channels: int = 3, norm: str = "batch", **kwargs: Any) -> None:
        self.depth = depth
        self.norm = norm
        self.num_channels = num_channels
        super().__init__(**kwargs)


class WideResNetConfig(PretrainedConfig):
    """A wide ResNet of ``depth`` 6n + 4: three groups of n blocks with 16k, 32k and 64k channels, k = ``width``."""

    model_type = "bellwether-wide-resnet"

    def __init__(
        self, depth: int = 22, width: int = 6, num_channels: int = 3, norm: str = "batch", **kwargs: Any
    ) -> None:
        self.depth = depth
        self.norm = norm
        self.width = width
        self.num_channels = num_channels
        super().__init__(**kwargs)


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Shift(nn.Module):
    """x + bias, a scalar: Fixup adds one before each convolution and each activation."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Gain(Shift):
    """gain x + bias, two scalars: Fixup adds them at the end of a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.bias


def _norm(channels: int, norm: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else Shift()


def _extra(kind: type[Shift], norm: str) -> nn.Module:
    return nn.Identity() if norm == "batch" else kind()


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus shortcut, ReLU. Without BatchNorm, shifts replace it and precede the convolutions.

    The shortcut has no parameters (option A of the paper, which it uses for CIFAR): at the start of a stage it takes every
    other pixel and pads the new channels with zeros.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, outputs - inputs
        self.shift1 = _extra(Shift, norm)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = _norm(outputs, norm)
        self.shift2 = _extra(Shift, norm)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs) if norm == "batch" else Gain()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        y = functional.relu(self.bn1(self.conv1(self.shift1(x))))
        return functional.relu(self.bn2(self.conv2(self.shift2(y))) + shortcut)


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, plus shortcut.

    If the number of channels changes, the shortcut is a 1 x 1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.bn1 = _norm(inputs, norm)
        self.shift1 = _extra(Shift, norm)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = _norm(outputs, norm)
        self.shift2 = _extra(Shift, norm)
        self.conv2 = _conv3x3(outputs, outputs)
        self.gain = _extra(Gain, norm)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        active = self.shift1(functional.relu(self.bn1(x)))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = self.shift2(functional.relu(self.bn2(self.conv1(active))))
        return self.gain(self.conv2(y)) + shortcut


def _stages(block: type[nn.Module], stem: int, channels: list[int], blocks: int, norm: str) -> nn.Sequential:
    stages = []
    inputs = stem
    for stage, outputs in enumerate(channels):
        layers = []
        for index in range(blocks):
            layers.append(block(inputs, outputs, 2 if stage and not index else 1, norm))
            inputs = outputs
        stages.append(nn.Sequential(*layers))
    return nn.Sequential(*stages)


class _Residual(PreTrainedModel):
    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        # He et al. 2015 (1502.01852), by fan-out. Linear layers and norms keep torch's initialization.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _initialize(self) -> None:
        """Initializes the weights. Without BatchNorm by Fixup: each block starts as its shortcut, its first convolution scaled down."""
        self.post_init()
        if self.config.norm == "batch":
            return
        blocks = [m for m in self.modules() if isinstance(m, BasicBlock | PreActivationBlock)]
        with torch.no_grad():
            for block in blocks:
                # Fixup, section 3: L^(-1 / (2m - 2)) for L blocks of m = 2 convolutions.
                block.conv1.weight.mul_(len(blocks) ** -0.5)
                block.conv2.weight.zero_()
            self.classifier.weight.zero_()
            self.classifier.bias.zero_()

    def features(self, pixel_values: Tensor) -> Tensor:
        """The activations of the last stage: [B, C, H, W] to [B, channels, H / 4, W / 4]."""
        raise NotImplementedError

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """``logits`` [B, classes], and their mean cross entropy ``loss`` if ``labels`` [B] are given."""
        pooled = self.features(pixel_values).mean(dim=(2, 3))
        logits = self.classifier(pooled)
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class CifarResNetForImageClassification(_Residual):
    """3 x 3 stem with 16 channels, three stages, global average, linear."""

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        self.stem = _conv3x3(config.num_channels, 16)
        self.bn = _norm(16, config.norm)
        self.stages = _stages(BasicBlock, 16, [16, 32, 64], (config.depth - 2) // 6, config.norm)
        self.classifier = nn.Linear(64, config.num_labels)
        self._initialize()

    def features(self, pixel_values: Tensor) -> Tensor:
        return self.stages(functional.relu(self.bn(self.stem(pixel_values))))


class WideResNetForImageClassification(_Residual):
    """3 x 3 stem with 16 channels, three groups, BN-ReLU, global average, linear."""

    config_class = WideResNetConfig

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__(config)
        widths = [16 * config.width, 32 * config.width, 64 * config.width]
        self.stem = _conv3x3(config.num_channels, 16)
        self.stages = _stages(PreActivationBlock, 16, widths, (config.depth - 4) // 6, config.norm)
        self.bn = _norm(widths[-1], config.norm)
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self._initialize()

    def features(self, pixel_values: Tensor) -> Tensor:
        return functional.relu(self.bn(self.stages(self.stem(pixel_values))))
