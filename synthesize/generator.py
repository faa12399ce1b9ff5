"""The generator: a residual convolutional network from a random vector and a class to an image."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.torch_files import load_safetensors
from dpmepf.synthesize.batch_norm import WholeBatchNorm
from dpmepf.synthesize.variation import CHANGES, Variation

RESOLUTIONS = (28, 32, 64, 128)
CLASS_EMBEDDING = 64
WEIGHTS_FILE = "generator.safetensors"
CONFIGURATION_FILE = "generator.json"


class GeneratorError(DpmepfError):
    """A stored generator is missing, damaged, or of a form this version does not build."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfiguration:
    """The shape of a generator: what it draws (classes, resolution, channels) and how large it is.

    latent_dimension is the length of the random input. If images are varied, the last of it decides how
    (`dpmepf.synthesize.variation`) and the rest what is drawn. Those stored by earlier versions are not varied.
    """

    class_count: int
    resolution: int
    channels: int
    base_channels: int
    second_convolution: bool
    latent_dimension: int
    varied: bool = False

    def __post_init__(self) -> None:
        if self.resolution not in RESOLUTIONS:
            raise GeneratorError(
                f"the generator draws images of {', '.join(map(str, RESOLUTIONS))} pixels, not {self.resolution}: "
                "ask for an artifact of one of these resolutions"
            )
        if self.channels not in (1, 3):
            raise GeneratorError(f"the generator draws grey (1) or RGB (3) images, not {self.channels} channels")
        for name in ("class_count", "base_channels", "latent_dimension"):
            number = getattr(self, name)
            if type(number) is not int or not 1 <= number <= 100_000:
                raise GeneratorError(f"generator field {name} is {number!r}, but has to be 1 to 100000")
        for name in ("second_convolution", "varied"):
            if type(getattr(self, name)) is not bool:
                raise GeneratorError(f"generator field {name} is {getattr(self, name)!r}, not true or false")
        if self.drawn_dimension < 1:
            raise GeneratorError(
                f"generator field latent_dimension is {self.latent_dimension}, but has to be at least "
                f"{len(CHANGES) + 1} for images that are varied"
            )

    @property
    def drawn_dimension(self) -> int:
        """How much of the random input decides what is drawn."""
        return self.latent_dimension - (len(CHANGES) if self.varied else 0)

    @property
    def first_resolution(self) -> int:
        return 7 if self.resolution == 28 else 4

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, from the first to the last; never more than four times the base."""
        doublings = int(math.log2(self.resolution // self.first_resolution))
        return tuple(self.base_channels * min(4, remaining + 1) for remaining in range(doublings, -1, -1))


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias belong to the image's class."""

    def __init__(self, channels: int, class_count: int) -> None:
        super().__init__()
        self.norm = WholeBatchNorm(channels)
        self.gain = nn.Embedding(class_count, channels)
        self.bias = nn.Embedding(class_count, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        x = self.norm(x)
        gain, bias = self.gain(classes).to(x.dtype), self.bias(classes).to(x.dtype)
        return torch.addcmul(bias[:, :, None, None], x, gain[:, :, None, None])


class ResidualBlock(nn.Module):
    """Residual block that may double the resolution first.

    Norm and activation run before the enlargement: nearest-neighbour copies do not change what they compute, and a
    quarter of the pixels halves the generator's training time on a CPU.
    """

    def __init__(
        self, inputs: int, outputs: int, class_count: int, *, enlarges: bool, second_convolution: bool
    ) -> None:
        super().__init__()
        self.enlarges = enlarges
        self.norm1 = ConditionalBatchNorm(inputs, class_count)
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)
        self.second_convolution = second_convolution
        if second_convolution:
            self.norm2 = ConditionalBatchNorm(outputs, class_count)
            self.convolution2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        skip = self.skip(x)
        x = functional.relu(self.norm1(x, classes), inplace=True)
        if self.enlarges:
            x, skip = _enlarged(x), _enlarged(skip)
        x = self.convolution1(x)
        if self.second_convolution:
            x = self.convolution2(functional.relu(self.norm2(x, classes), inplace=True))
        return x + skip


class Generator(nn.Module):
    """Images in [0, 1] from latent vectors and classes."""

    def __init__(self, configuration: GeneratorConfiguration) -> None:
        super().__init__()
        self.configuration = configuration
        class_count, widths = configuration.class_count, configuration.widths
        self.class_embedding = nn.Embedding(class_count, CLASS_EMBEDDING)
        self.first = nn.Linear(
            configuration.drawn_dimension + CLASS_EMBEDDING, widths[0] * configuration.first_resolution**2
        )
        self.blocks = nn.ModuleList(
            ResidualBlock(
                inputs,
                outputs,
                class_count,
                enlarges=index > 0,
                second_convolution=configuration.second_convolution,
            )
            for index, (inputs, outputs) in enumerate(itertools.pairwise(widths))
        )
        self.last_norm = ConditionalBatchNorm(widths[-1], class_count)
        self.last = nn.Conv2d(widths[-1], configuration.channels, 3, padding=1)
        self.variation = Variation(class_count) if configuration.varied else None

    def forward(self, latents: Tensor, classes: Tensor) -> Tensor:
        """Return N×C×R×R float32 images from latents N×latent_dimension and int64 classes N."""
        side = self.configuration.first_resolution
        drawn_dimension, dimension = self.configuration.drawn_dimension, self.configuration.latent_dimension
        drawn, changes = latents.split([drawn_dimension, dimension - drawn_dimension], dim=1)
        x = self.first(torch.cat([drawn, self.class_embedding(classes)], dim=1))
        x = x.view(len(x), -1, side, side).contiguous(memory_format=torch.channels_last)  # N x widths[0] x 4 x 4
        for block in self.blocks:
            x = block(x, classes)  # N x widths[i] x 4 x 4, x 8 x 8, x 16 x 16, ...
        x = _enlarged(functional.relu(self.last_norm(x, classes), inplace=True))  # N x widths[-1] x R x R
        logits = self.last(x).float()  # N x C x R x R
        return logits.sigmoid() if self.variation is None else self.variation(logits, changes, classes)

    def multiply_adds_per_image(self) -> int:
        """Return the multiply-accumulate operations of one image's convolutions and linear layers, forward."""
        device = self.class_embedding.weight.device
        was_training = self.training
        self.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self(
                torch.zeros(1, self.configuration.latent_dimension, device=device),
                torch.zeros(1, dtype=torch.int64, device=device),
            )
        self.train(was_training)
        return counter.get_total_flops() // 2

    @torch.no_grad()
    def recalibrate(self, *, batches: int, images_per_batch: int, random: torch.Generator) -> None:
        """Measure the batch-norm statistics afresh, over all classes.

        A moving average of weights needs the statistics of those weights, which no training step has seen.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
        device = self.class_embedding.weight.device
        was_training = self.training
        self.train()
        for _ in range(batches):
            latents = torch.randn(images_per_batch, self.configuration.latent_dimension, generator=random)
            classes = torch.randint(self.configuration.class_count, (images_per_batch,), generator=random)
            self(latents.to(device), classes.to(device))
        self.train(was_training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def build_generator(configuration: GeneratorConfiguration, *, seed: int, device: str | torch.device) -> Generator:
    """Return a generator with initial weights drawn from `seed`, channels last, leaving torch's own seed untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(configuration)
    return generator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def save_generator(folder: Path, generator: Generator, *, classes: tuple[str, ...]) -> None:
    """Write `generator.safetensors` and `generator.json` into `folder`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))  # not save_file, which hides that a disk is full
    description = {"configuration": asdict(generator.configuration), "classes": list(classes)}
    (folder / CONFIGURATION_FILE).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_generator(folder: Path, *, device: str | torch.device = "cpu") -> tuple[Generator, tuple[str, ...]]:
    """Return the generator that `save_generator` wrote into `folder`, ready to draw, and its class names.

    Raises:
        GeneratorError: a file is missing, damaged or does not fit the other.
    """
    try:
        description: dict[str, Any] = json.loads((folder / CONFIGURATION_FILE).read_text("utf-8"))
        configuration = GeneratorConfiguration(**description["configuration"])
        classes = tuple(str(name) for name in description["classes"])
        generator = Generator(configuration)
        generator.load_state_dict(load_safetensors(folder / WEIGHTS_FILE))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise GeneratorError(
            f"{folder} lacks {Path(error.filename or WEIGHTS_FILE).name}: give a folder that dpmepf-synth wrote"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise GeneratorError(f"the generator in {folder} is damaged: run dpmepf-synth again") from error
    if len(classes) != configuration.class_count:
        raise GeneratorError(f"the generator in {folder} names {len(classes)} of {configuration.class_count} classes")
    return generator.to(device=device, memory_format=torch.channels_last).eval(), classes  # type: ignore[call-overload]


def _enlarged(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
