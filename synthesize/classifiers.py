"""The classifiers that measure a synthetic data set: trained on its images, tested on real ones.

Three architectures with fixed recipes, so that scores of different data sets compare:

- `logistic`: multinomial logistic regression on the pixels;
- `mlp`: two hidden layers of 512 and 256 ReLU units with batch norm;
- `cnn`: five 3×3 convolutions (32 to 128 channels) with batch norm and ReLU, one residual connection, 0.4 million
  parameters. Its training images are shifted, mirrored if RGB, given noise and a hidden square.

Every recipe counts steps, not passes, so that the cost does not grow with the data set. Nothing is chosen by looking
at real images: no early stopping, no tuning, and pixels are standardised by the synthetic set's own mean and spread.

For orientation, trained on the real training sets instead (one run): MNIST 92.4, 98.7 and 99.5 % (the CNN after 450
steps), CIFAR-10 40.6 % (`logistic`) and 77.2 % (`cnn`). The CNN costs 0.23 s a step on one AVX2 core at 32×32 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from dpmepf.shared.errors import UsageError
from dpmepf.shared.precision import autocast

STATISTICS_IMAGES = 4096
TEST_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one architecture is trained: AdamW with a one-cycle learning rate over a fixed number of steps."""

    steps: int
    batch_size: int
    peak_learning_rate: float
    weight_decay: float
    label_smoothing: float
    augmented: bool
    most_passes: int = 60  # a small data set gets fewer steps

    def steps_for(self, image_count: int) -> int:
        """Number of steps on a data set of `image_count` images."""
        return min(self.steps, math.ceil(self.most_passes * image_count / min(self.batch_size, image_count)))


RECIPES = {
    "logistic": Recipe(
        steps=1500, batch_size=256, peak_learning_rate=2e-3, weight_decay=1e-2, label_smoothing=0.0, augmented=False
    ),
    "mlp": Recipe(
        steps=1500, batch_size=256, peak_learning_rate=2e-3, weight_decay=5e-2, label_smoothing=0.1, augmented=False
    ),
    "cnn": Recipe(
        steps=1000, batch_size=128, peak_learning_rate=8e-3, weight_decay=5e-2, label_smoothing=0.1, augmented=True
    ),
}
CLASSIFIERS = tuple(RECIPES)


class Standardise(nn.Module):
    """Pixels 0..255 to zero mean and unit spread of each channel, by the statistics of the training images."""

    mean: Tensor
    spread: Tensor

    def __init__(self, training_images: Tensor) -> None:
        super().__init__()
        sample = training_images[:: max(1, len(training_images) // STATISTICS_IMAGES)].float()
        self.register_buffer("mean", sample.mean(dim=(0, 2, 3), keepdim=True))
        self.register_buffer("spread", sample.std(dim=(0, 2, 3), keepdim=True).clamp_min(1.0))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.spread


class SmallCnn(nn.Module):
    """Convolutional classifier; images above 32×32 are brought near it by the stride of the stem."""

    def __init__(self, *, channels: int, resolution: int, class_count: int) -> None:
        super().__init__()
        stride = max(1, resolution // 32)
        self.stem = nn.Conv2d(channels, 32, 2 * stride + 1, stride=stride, padding=stride, bias=False)
        self.stem_end = _normalised(32)
        self.wider = nn.Sequential(_convolution(32, 64), nn.MaxPool2d(2), _normalised(64))
        self.widest = nn.Sequential(_convolution(64, 128), nn.MaxPool2d(2), _normalised(128))
        self.residual = nn.Sequential(
            _convolution(128, 128), _normalised(128), _convolution(128, 128), _normalised(128)
        )
        self.classifier = nn.Linear(128, class_count)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.stem_end(F.max_pool2d(self.stem(images), 2))  # N x 32 x 16 x 16
        x = self.widest(self.wider(x))  # N x 128 x 4 x 4
        x = x + self.residual(x)
        return self.classifier(x.amax(dim=(2, 3)))  # N x class_count


def _convolution(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)


def _normalised(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())


def _architecture(name: str, *, channels: int, resolution: int, class_count: int) -> nn.Module:
    pixels = channels * resolution**2
    match name:
        case "logistic":
            return nn.Sequential(nn.Flatten(), nn.Linear(pixels, class_count))
        case "mlp":
            return nn.Sequential(
                nn.Flatten(),
                *(nn.Linear(pixels, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()),
                *(nn.Linear(512, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU()),
                nn.Linear(256, class_count),
            )
        case "cnn":
            return SmallCnn(channels=channels, resolution=resolution, class_count=class_count)
    raise UsageError(f"the classifier {name!r} is unknown: choose from {', '.join(CLASSIFIERS)}")


def train_classifier(
    name: str,
    images: Tensor,
    labels: Tensor,
    *,
    class_count: int,
    seed: int,
    device: str | torch.device = "cpu",
    on_step: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train one classifier and return it in evaluation mode, taking uint8 images and giving class scores.

    Args:
        name: one of `CLASSIFIERS`.
        images: uint8, N×C×R×R, N >= 2.
        labels: int64, N, values 0..class_count-1.
        seed: decides the initial weights, the order of the images and the augmentation.
        on_step: called after each step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _architecture(name, channels=images.shape[1], resolution=images.shape[2], class_count=class_count)
    recipe = RECIPES[name]
    standardise = Standardise(images).to(device)
    network = network.to(device).train()
    order = torch.Generator().manual_seed(seed)
    changes = torch.Generator(device).manual_seed(seed)
    steps = recipe.steps_for(len(images))
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.peak_learning_rate, weight_decay=recipe.weight_decay)
    schedule = OneCycleLR(optimiser, recipe.peak_learning_rate, total_steps=steps, pct_start=0.25, cycle_momentum=False)
    for indices in _random_batches(len(images), recipe.batch_size, steps, order):
        batch = standardise(images[indices].to(device))
        if recipe.augmented:
            batch = augment(batch, changes)
        with autocast(device):
            scores = network(batch)
        loss = F.cross_entropy(scores.float(), labels[indices].to(device), label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        on_step()
    return nn.Sequential(standardise, network).eval()


@torch.inference_mode()
def accuracy_of(classifier: nn.Module, images: Tensor, labels: Tensor, *, device: str | torch.device = "cpu") -> float:
    """Share of the images (uint8, N×C×R×R) to which the classifier gives the right label."""
    correct = 0
    for batch, truth in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
        with autocast(device):
            scores = classifier(batch.to(device))
        correct += int((scores.argmax(dim=1).cpu() == truth).sum())
    return correct / len(images)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change standardised images a little, each by its own draw: shift, mirror (RGB only), hidden square, noise.

    Shift by at most R/16 pixels with reflected borders; a hidden square of side R/4 at zero, the mean; noise of a tenth
    of the spread, so that a classifier cannot lean on faint artefacts that only generated images have.
    """
    count, channels, resolution, _ = images.shape
    device = images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count, 1), generator=generator, device=device)

    margin = resolution // 16
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    places = torch.arange(resolution, device=device)
    rows, columns = draw(2 * margin + 1) + places, draw(2 * margin + 1) + places  # N x R
    if channels == 3:
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    each = torch.arange(count, device=device)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]  # N x R x R x C

    side = resolution // 4
    first_row, first_column = draw(resolution + side) - side, draw(resolution + side) - side
    hidden_rows = (places >= first_row) & (places < first_row + side)  # N x R
    hidden_columns = (places >= first_column) & (places < first_column + side)
    hidden = (hidden_rows[:, :, None] & hidden_columns[:, None, :])[..., None]
    noise = torch.randn(shifted.shape, generator=generator, device=device)
    return (shifted + 0.1 * noise).masked_fill(hidden, 0.0).permute(0, 3, 1, 2)


def _random_batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` batches of indices: pass after pass in random order, the short rest of a pass left out."""
    batch_size = min(batch_size, count)
    batches: list[Tensor] = []
    for _ in range(steps):
        if not batches:
            batches = [b for b in torch.randperm(count, generator=generator).split(batch_size) if len(b) == batch_size]
        yield batches.pop()
