"""Training of the built-in encoder on public labelled images: small to full resolution, one cosine cycle, resumable.

Then its features are whitened by what the same images say of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from dpmepf.shared.encoders import (
    PIXEL_MEAN,
    PIXEL_STD,
    WHITENING,
    BuiltinEncoder,
    whitening_of_layers,
    with_batch_counters,
)
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import WHITENED_POOLING, pool
from dpmepf.shared.output_file import replacing
from dpmepf.shared.precision import autocast
from dpmepf.shared.torch_files import load_torch_file
from dpmepf.shared.whitening import Whitening

WHITENING_IMAGES = 10_000
WHITENING_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """How the encoder is trained; every field is recorded in the checkpoint and must agree on resuming.

    resolutions are the image sides in pixels of equal shares of the epochs; the last is that of the images as given.
    Smaller ones come first because a step at half the side costs a quarter, and what they teach carries over.
    attack_radius is how far each training image is moved (`attacked`); 0: not at all.
    """

    epochs: int = 14
    resolutions: tuple[int, ...] = (16, 24, 32)
    batch_size: int = 128
    learning_rate: float = 0.15
    warmup_share: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    grey_probability: float = 0.15
    jitter: float = 0.25
    attack_radius: float = 0.0
    held_out_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.resolutions:
            raise UsageError("pre-training needs at least 1 epoch, a batch of 2 and one resolution")
        if not 0 < self.held_out_share < 1:
            raise UsageError(f"the held-out share is {self.held_out_share}; choose one between 0 and 1")
        if not 0 <= self.attack_radius < math.inf:
            raise UsageError(f"the attack radius is {self.attack_radius}; choose 0 or a little more, such as 0.2")


@dataclass(frozen=True, kw_only=True)
class PretrainingProgress:
    """What a callback sees after every step."""

    step: int
    step_count: int
    resolution: int
    images: int
    loss: float


def split_held_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Indices of training and held-out images: within every class, each (1/share)-th image is held out."""
    rank = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        rank[members] = torch.arange(len(members))
    held_out = rank % round(1 / share) == 0
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def augment(images: Tensor, settings: PretrainingSettings, generator: torch.Generator) -> Tensor:
    """Flip, shift by an eighth, change brightness and contrast, sometimes drop colour; each image on its own.

    images: N×3×R×R float in [0, 1]; the result has the same shape and may leave [0, 1] a little.
    """
    count, _, side, _ = images.shape
    margin = side // 8

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(low, high, generator=generator).to(images.device)

    padded = functional.pad(images, (margin,) * 4, mode="reflect")
    rows = torch.arange(side) + torch.randint(0, 2 * margin + 1, (count, 1), generator=generator)
    columns = torch.arange(side) + torch.randint(0, 2 * margin + 1, (count, 1), generator=generator)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    images = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    grey = images.mean(dim=1, keepdim=True)
    images = torch.where(uniform(0, 1) < settings.grey_probability, grey, images)
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = uniform(1 - settings.jitter, 1 + settings.jitter)
    return (images - centre) * contrast + centre * uniform(1 - settings.jitter, 1 + settings.jitter)


def attacked(encoder: nn.Module, images: Tensor, labels: Tensor, settings: PretrainingSettings) -> Tensor:
    """Move each image by `settings.attack_radius` (Euclidean) in the direction that raises its loss fastest.

    An encoder that is trained on such images cannot rely on what nobody sees, and images that are made to have certain
    features of it show what a person would recognise (Engstrom et al. 2019, arXiv 1906.00945). One step of the attack
    (Goodfellow et al., ICLR 2015) costs two thirds of a training step. Running statistics of batch norm see both kinds
    of images.

    images: N×3×R×R float, pixels in [0, 1]; labels: N int64. The result has the shape of the images.
    """
    images = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(encoder, images, labels, settings), images)
    directions = functional.normalize(gradient.flatten(1), dim=1).view_as(gradient)
    return images.detach() + settings.attack_radius * directions


def encoder_of(state: Mapping[str, Tensor], class_count: int) -> BuiltinEncoder:
    """An encoder with given weights, in evaluation mode, without whitening.

    Raises: UsageError when the weights belong to another encoder, or another number of classes.
    """
    encoder = BuiltinEncoder(class_count)
    trained = {name: tensor for name, tensor in state.items() if not name.startswith(WHITENING)}  # measured afresh
    try:
        encoder.load_state_dict(with_batch_counters(encoder, trained))
    except RuntimeError as error:
        raise UsageError(
            "the weights to start from belong to another encoder or another number of classes: name a file that "
            "dpmepf-pretrain wrote for the same classes"
        ) from error
    return encoder.eval()


def pretrain_encoder(
    images: Tensor,
    labels: Tensor,
    class_count: int,
    settings: PretrainingSettings,
    *,
    checkpoint: Path,
    initial_state: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
    report: Callable[[PretrainingProgress], None] = lambda progress: None,
    checkpoint_every: int = 500,
) -> BuiltinEncoder:
    """Train the built-in encoder; continue from `checkpoint` when it exists.

    Args:
        images: N×3×R×R uint8, public. labels: N int64 in 0..class_count-1. Held-out images must not be among them.
        checkpoint: written every `checkpoint_every` steps and on Ctrl-C, by renaming a complete file.
        initial_state: state dict of an encoder with the same classes to train further; None: random weights.
    Returns: the trained encoder in evaluation mode.
    Raises: UsageError when the checkpoint belongs to other settings or another `initial_state`, or that to another
        encoder.
    """
    torch.manual_seed(settings.seed)
    encoder = BuiltinEncoder(class_count) if initial_state is None else encoder_of(initial_state, class_count)
    run = json.dumps(asdict(settings) | {"start": None if initial_state is None else _digest(encoder)})
    encoder = encoder.to(device).to(memory_format=torch.channels_last)
    matrices = [p for p in encoder.parameters() if p.ndim > 1]
    vectors = [p for p in encoder.parameters() if p.ndim == 1]
    optimiser = torch.optim.SGD(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    steps_per_epoch = len(images) // settings.batch_size
    step_count = settings.epochs * steps_per_epoch
    step = _resume(checkpoint, encoder, optimiser, run) if checkpoint.exists() else 0
    order, ordered_epoch = torch.empty(0, dtype=torch.long), -1
    encoder.train()
    try:
        while step < step_count:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != ordered_epoch:
                epoch_generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
                order, ordered_epoch = torch.randperm(len(images), generator=epoch_generator), epoch
            chosen = order[position * settings.batch_size : (position + 1) * settings.batch_size]
            resolution = settings.resolutions[step * len(settings.resolutions) // step_count]
            generator = torch.Generator().manual_seed(settings.seed * 1_000_033 + step)
            batch = _resize(images[chosen].to(device).float() / 255, resolution)
            batch, truth = augment(batch, settings, generator), labels[chosen].to(device)
            if settings.attack_radius > 0:
                batch = attacked(encoder, batch, truth, settings)
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step / step_count, settings.warmup_share)
            loss = _loss(encoder, batch, truth, settings)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1
            report(
                PretrainingProgress(
                    step=step,
                    step_count=step_count,
                    resolution=resolution,
                    images=settings.batch_size,
                    loss=loss.item(),
                )
            )
            if step % checkpoint_every == 0:
                _save(checkpoint, step, encoder, optimiser, run)
    except KeyboardInterrupt:
        _save(checkpoint, step, encoder, optimiser, run)
        raise
    _save(checkpoint, step, encoder, optimiser, run)
    return encoder.eval()


def held_out_accuracy(encoder: nn.Module, images: Tensor, labels: Tensor, *, device: str = "cpu") -> float:
    """Share of images whose label is the encoder's first choice, one view per image."""
    encoder.eval()
    correct = 0
    with torch.inference_mode():
        for batch, truth in zip(images.split(500), labels.split(500), strict=True):
            logits = encoder(standardise(batch.to(device).float() / 255))
            correct += int((logits.argmax(dim=1).cpu() == truth).sum())
    return correct / len(labels)


@torch.no_grad()
def whiten(encoder: BuiltinEncoder, images: Tensor, *, device: str = "cpu") -> None:
    """Measure the whitening of the encoder's features, in place of what it has.

    images: N×3×R×R uint8, public, N ≥ 1; `WHITENING_IMAGES` of them count, chosen at random but always the same.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chosen = images[order[:WHITENING_IMAGES]]
    relus = [module for stage in encoder.stages for module in stage if isinstance(module, nn.ReLU)]
    found: dict[nn.Module, list[Tensor]] = {relu: [] for relu in relus}

    def keep(relu: nn.Module, inputs: object, activation: Tensor) -> None:
        found[relu].append(pool(activation, WHITENED_POOLING).half().cpu())

    hooks = [relu.register_forward_hook(keep) for relu in relus]
    encoder.eval()
    try:
        for batch in chosen.split(WHITENING_BATCH):
            encoder(standardise(batch.to(device).float() / 255).contiguous(memory_format=torch.channels_last))
    finally:
        for hook in hooks:
            hook.remove()
    encoder.whitening = whitening_of_layers().to(device)
    for whitening, relu in zip(encoder.whitening, relus, strict=True):
        cast(Whitening, whitening).measure(found[relu])


def save_weights(encoder: BuiltinEncoder, path: Path) -> None:
    """Write the weights as float16 safetensors (batch-norm statistics included)."""
    state = {
        name: tensor.half().contiguous() for name, tensor in encoder.state_dict().items() if tensor.is_floating_point()
    }
    with replacing(path) as temporary:
        temporary.write_bytes(save(state))  # not save_file, which leaves the file to its owner alone


def standardise(images: Tensor) -> Tensor:
    """Pixels in [0, 1] to zero mean and unit spread per colour channel, by fixed public constants."""
    mean = images.new_tensor(PIXEL_MEAN).view(1, 3, 1, 1)
    std = images.new_tensor(PIXEL_STD).view(1, 3, 1, 1)
    return (images - mean) / std


def _loss(encoder: nn.Module, images: Tensor, labels: Tensor, settings: PretrainingSettings) -> Tensor:
    with autocast(images.device):
        logits = encoder(standardise(images).contiguous(memory_format=torch.channels_last))
    return functional.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)


def _resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def _schedule(position: float, warmup: float) -> float:
    if position < warmup:
        return (position + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / (1 - warmup)))


def _digest(encoder: nn.Module) -> str:
    return hashlib.sha256(save({name: part.contiguous() for name, part in encoder.state_dict().items()})).hexdigest()


def _save(path: Path, step: int, encoder: nn.Module, optimiser: torch.optim.Optimizer, run: str) -> None:
    state = {"encoder": encoder.state_dict(), "optimiser": optimiser.state_dict()}
    with replacing(path) as temporary:
        torch.save({"step": step, "run": run, **state}, temporary)


def _resume(path: Path, encoder: nn.Module, optimiser: torch.optim.Optimizer, run: str) -> int:
    try:
        saved = load_torch_file(path)
        same_run = saved["run"] == run
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no checkpoint of this command: delete it, or choose another --output") from error
    if not same_run:
        raise UsageError(
            f"checkpoint {path} belongs to other settings, other weights to start from or an earlier version: repeat "
            "those, delete it, or choose another --output"
        )
    encoder.load_state_dict(saved["encoder"])
    optimiser.load_state_dict(saved["optimiser"])
    return int(saved["step"])
