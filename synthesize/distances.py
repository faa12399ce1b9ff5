"""How far two sets of images are apart in the features of one public network: FID, KID, precision and recall.

Features are computed once and all four numbers are taken from them. FID and KID are torchmetrics'; the network is
Inception with the weights of torch-fidelity if they lie in torch's cache (scores then compare with published ones),
else the built-in encoder (scores compare with each other only). Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities.imports import RequirementCache

from dpmepf.shared.encoders import BUILTIN, PIXEL_MEAN, PIXEL_STD, EncoderWeightsError, load_encoder
from dpmepf.shared.errors import UsageError

EXTRACTORS = ("auto", "inception", "builtin")
FEWEST_IMAGES = 10
FEATURE_BATCH = 100
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURS = 3
NEIGHBOUR_IMAGES = 5000
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Distances:
    """FID, KID (mean and spread over random subsets), precision and recall between two sets of images."""

    fid: float
    kid_mean: float
    kid_std: float
    precision: float
    recall: float


class BuiltinExtractor(nn.Module):
    """The built-in encoder up to its classifier: 512 features, which no generator is trained to match directly."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        encoder, sha256 = load_encoder(BUILTIN)
        self.label = f"builtin encoder {sha256[:8]}, 512 features (compare with scores by the same weights only)"
        encoder.classifier = nn.Identity()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 N×3×R×R to float N×512."""
        pixels = (images.float() / 255 - self.mean) / self.std
        return self.encoder(pixels.contiguous(memory_format=torch.channels_last))


class InceptionExtractor(nn.Module):
    """Inception v3 as torchmetrics and torch-fidelity use it for FID: 2048 features of images scaled to 299×299."""

    label = "Inception v3 (torch-fidelity weights), 2048 features"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.inception = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 N×3×R×R to float N×2048."""
        return self.inception(images)


def load_extractor(choice: str = "auto") -> BuiltinExtractor | InceptionExtractor:
    """Load the network that features are taken from; nothing is downloaded.

    Args:
        choice: `inception` if its weights must be used, `builtin` if not, `auto` to use them if they are at hand.

    Raises:
        UsageError: `inception` is asked for and torch-fidelity is not installed.
        EncoderWeightsError: `inception` is asked for and its weights are not in the cache, or the file is damaged.
    """
    if choice not in EXTRACTORS:
        raise UsageError(f"the extractor {choice!r} is unknown: choose from {', '.join(EXTRACTORS)}")
    if choice == "builtin":
        return BuiltinExtractor()
    if not RequirementCache("torch_fidelity"):
        if choice == "inception":
            raise UsageError(
                "Inception needs torch-fidelity: pip install dpmepf[inception], or take --extractor builtin"
            )
        return BuiltinExtractor()
    weights = inception_weights_file()
    if weights.is_file():
        _check_hash(weights)
        return InceptionExtractor(weights)
    if choice == "auto":
        return BuiltinExtractor()
    raise EncoderWeightsError(
        f"Inception's weights are not at {weights}: put torch-fidelity's file there, or take --extractor builtin"
    )


def inception_weights_file() -> Path:
    """Where torch's cache holds (or would hold) torch-fidelity's Inception weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(URL_INCEPTION_V3).path).name


def _check_hash(weights: Path) -> None:
    """torch-fidelity unpickles this file, so it must be the published one: its name ends in 8 digits of its SHA-256."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(weights.stem.rpartition("-")[2]):
        raise EncoderWeightsError(
            f"{weights} is damaged or not torch-fidelity's: remove it, or take --extractor builtin"
        )


@torch.inference_mode()
def extract_features(
    extractor: nn.Module,
    images: Tensor,
    *,
    device: str | torch.device = "cpu",
    on_images: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Features of uint8 images (N×C×R×R, grey repeated to RGB) as float64 N×d on the CPU; `on_images` per batch."""
    extractor = extractor.to(device).eval()
    features = []
    for batch in images.split(FEATURE_BATCH):
        features.append(extractor(batch.to(device).expand(-1, 3, -1, -1)).cpu().double())
        on_images(len(batch))
    return torch.cat(features)


def measure_distances(synthetic: Tensor, real: Tensor, *, seed: int = 0) -> Distances:
    """Take all four numbers from features (float64, N×d and M×d, at least `FEWEST_IMAGES` rows each, any order).

    `seed` chooses the random subsets of KID. Precision and recall use the first `NEIGHBOUR_IMAGES` rows of each, the
    same number from both.
    """
    if min(len(synthetic), len(real)) < FEWEST_IMAGES:
        raise UsageError(
            f"FID, KID, precision and recall need at least {FEWEST_IMAGES} images on both sides: give more, or pass "
            "--no-distances"
        )
    rows = min(len(synthetic), len(real), NEIGHBOUR_IMAGES)
    precision, recall = precision_and_recall(synthetic[:rows], real[:rows])
    kid_mean, kid_std = _kid(synthetic, real, seed=seed)
    return Distances(fid=_fid(synthetic, real), kid_mean=kid_mean, kid_std=kid_std, precision=precision, recall=recall)


class _FeaturesAsTheyAre(nn.Module):
    """What torchmetrics calls a feature extractor, for features that are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _fid(synthetic: Tensor, real: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=_FeaturesAsTheyAre(synthetic.shape[1]))
    metric.update(real, real=True)
    metric.update(synthetic, real=False)
    return float(metric.compute())


def _kid(synthetic: Tensor, real: Tensor, *, seed: int) -> tuple[float, float]:
    """Mean and standard deviation over subsets; small sets are halved, so that subsets differ at all."""
    subset_size = min(KID_SUBSET_SIZE, min(len(synthetic), len(real)) // 2)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=_FeaturesAsTheyAre(synthetic.shape[1]), subsets=KID_SUBSETS, subset_size=subset_size
        )
        metric.update(real, real=True)
        metric.update(synthetic, real=False)
        mean, std = metric.compute()
    return float(mean), float(std)


def precision_and_recall(synthetic: Tensor, real: Tensor, *, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of synthetic images within the real manifold (precision) and of real ones within the synthetic (recall).

    A manifold is the union of the balls around every point that reach to its k-th nearest other point.

    Source: Kynkäänniemi, Karras, Laine, Lehtinen, Aila, Improved Precision and Recall Metric for Assessing Generative
    Models, NeurIPS 2019, arXiv 1904.06991, equations 1 to 3, with their k = 3.

    Args:
        synthetic, real: features, float64, N×d and M×d, both with more than `neighbours` rows.
    """
    return _share_within(real, synthetic, neighbours), _share_within(synthetic, real, neighbours)


def _share_within(manifold: Tensor, points: Tensor, neighbours: int) -> float:
    radii = torch.cat(
        # The nearest of all is the point itself, hence one more.
        [torch.cdist(rows, manifold).kthvalue(neighbours + 1, dim=1).values for rows in manifold.split(ROWS_AT_ONCE)]
    )
    within = sum(int((torch.cdist(rows, manifold) <= radii).any(dim=1).sum()) for rows in points.split(ROWS_AT_ONCE))
    return within / len(points)
