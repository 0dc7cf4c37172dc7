"""Classifiers of images of Tables 7 and 8: the literature's networks for CIFAR, and transformers' own for ImageNet.

The networks for CIFAR are those of the distillation literature (RepDistiller, Tian et al. 2020; mdistiller), written
out here, as models of transformers, so that they are trained, saved and loaded as any other.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, max_pool2d, relu
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from taid.studies.study import named


class CifarConfig(PreTrainedConfig):
    """A network for small images: `family` "resnet", "wrn" or "vgg", its depth, and the channels of stem and stages
    (of a VGG: of its five stages)."""

    model_type = "taid_cifar"

    def __init__(
        self,
        family: str = "resnet",
        depth: int = 20,
        widths: tuple[int, ...] = (16, 16, 32, 64),
        num_channels: int = 3,
        **kwargs,
    ):
        self.family, self.depth, self.widths, self.num_channels = family, depth, list(widths), num_channels
        super().__init__(**kwargs)


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, CVPR), a projection where the shape changes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first, self.second = _conv(before, after, stride), _conv(after, after)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norms[1](self.second(relu(self.norms[0](self.first(x)))))
        return relu(inside + self.shortcut(x))


class WideBlock(nn.Module):
    """The same, normalised before each convolution (Zagoruyko, Komodakis 2016)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first, self.second = _conv(before, after, stride), _conv(after, after)
        self.norms = nn.ModuleList([nn.BatchNorm2d(before), nn.BatchNorm2d(after)])
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        active = relu(self.norms[0](x))
        inside = self.second(relu(self.norms[1](self.first(active))))
        return inside + (x if self.shortcut is None else self.shortcut(active))


class CifarForImageClassification(PreTrainedModel):
    """logits [B, classes] of pixel_values [B, channels, side, side]."""

    config_class = CifarConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CifarConfig):
        super().__init__(config)
        layers = _vgg(config) if config.family == "vgg" else _residual(config)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(config.widths[-1], config.num_labels)  # type: ignore[arg-type]  # typed as if it could be None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):  # He et al. 2015, as RepDistiller's
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        logits = self.classifier(adaptive_avg_pool2d(self.features(pixel_values), 1).flatten(1))
        loss = None if labels is None else cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(CifarConfig.model_type, CifarConfig)
AutoModelForImageClassification.register(CifarConfig, CifarForImageClassification)


def _conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


def _residual(config: CifarConfig) -> list[nn.Module]:
    """Stem and three stages of (depth − 2)/6 basic blocks, or (depth − 4)/6 wide ones."""
    wide, (stem, *stages) = config.family == "wrn", config.widths
    block, count = (WideBlock, (config.depth - 4) // 6) if wide else (BasicBlock, (config.depth - 2) // 6)
    layers: list[nn.Module] = [_conv(config.num_channels, stem)]
    layers += [] if wide else [nn.BatchNorm2d(stem), nn.ReLU()]
    before = stem
    for number, after in enumerate(stages):
        for i in range(count):
            layers.append(block(before, after, 2 if number and not i else 1))
            before = after
    return layers + ([nn.BatchNorm2d(before), nn.ReLU()] if wide else [])


class Halve(nn.Module):
    """Maximum over 2 × 2, down to 4 × 4: the literature leaves out the pooling after the fourth stage."""

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, 2) if x.shape[-1] > 4 else x


def _vgg(config: CifarConfig) -> list[nn.Module]:
    """Five stages of one convolution (VGG8) or two (VGG13) (Simonyan, Zisserman 2015), normalised."""
    layers: list[nn.Module] = []
    before = config.num_channels
    for after in config.widths:
        for _ in range((config.depth - 3) // 5):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        layers.append(Halve())
    return layers


class Network(NamedTuple):
    """A classifier of the paper, its channels the paper's; at our scale it has a share of them, the `narrow`."""

    family: str  # "resnet", "wrn", "vgg"; of transformers: "basic", "bottleneck", "mobilenet"
    depth: int
    widths: tuple[int, ...]
    stages: tuple[int, ...] = ()  # blocks of each stage of transformers' ResNet
    narrow: float = 1 / 8


NARROW, FOURFOLD, VGG = (16, 16, 32, 64), (32, 64, 128, 256), (64, 128, 256, 512, 512)
NETWORKS = {
    "ResNet20": Network("resnet", 20, NARROW, narrow=1 / 4),
    "ResNet32": Network("resnet", 32, NARROW, narrow=1 / 4),
    "ResNet56": Network("resnet", 56, NARROW, narrow=1 / 4),
    "ResNet110": Network("resnet", 110, NARROW, narrow=1 / 4),
    "ResNet8x4": Network("resnet", 8, FOURFOLD),
    "ResNet32x4": Network("resnet", 32, FOURFOLD),
    "WRN-16-2": Network("wrn", 16, (16, 32, 64, 128), narrow=1 / 4),
    "WRN-40-1": Network("wrn", 40, (16, 16, 32, 64), narrow=1 / 4),
    "WRN-40-2": Network("wrn", 40, (16, 32, 64, 128), narrow=1 / 4),
    "VGG8": Network("vgg", 8, VGG),
    "VGG13": Network("vgg", 13, VGG),
    "ResNet18": Network("basic", 18, (64, 128, 256, 512), (2, 2, 2, 2)),
    "ResNet34": Network("basic", 34, (64, 128, 256, 512), (3, 4, 6, 3)),
    "ResNet50": Network("bottleneck", 50, (256, 512, 1024, 2048), (3, 4, 6, 3)),
    "MobileNet-V1": Network("mobilenet", 28, (32,)),
}


def classifier(
    name: str, classes: int, channels: int, narrow: bool = False, seed: int = 0
) -> PreTrainedModel:
    """A freshly initialised classifier of images of some `channels`, deterministic by `seed`; `narrow`: at our scale.

    Raises ValueError for an unknown name.
    """
    network = named(NETWORKS, name, "classifier")
    width = network.narrow if narrow else 1.0
    widths = tuple(round(width * channel) for channel in network.widths)
    shared: dict[str, Any] = {"num_labels": classes, "num_channels": channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if network.family == "mobilenet":  # whose own dropout, 0.999, is TensorFlow's share that is kept
            return _mobilenet(
                MobileNetV1Config(depth_multiplier=width, classifier_dropout_prob=0.0, **shared)
            )
        if network.stages:
            shape: dict[str, Any] = {
                "embedding_size": round(64 * width),
                "hidden_sizes": list(widths),
                "depths": list(network.stages),
            }
            return ResNetForImageClassification(ResNetConfig(**shape, layer_type=network.family, **shared))
        return CifarForImageClassification(CifarConfig(network.family, network.depth, widths, **shared))


def _mobilenet(config: MobileNetV1Config) -> PreTrainedModel:
    """As transformers', but its running means remember more than the last batch: there they have TensorFlow's
    momentum, 0.9997, which PyTorch counts the other way."""
    model = MobileNetV1ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model
