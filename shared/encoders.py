"""Public pre-trained encoders: the built-in one, whose weights are in the package, and torchvision's classifiers.

An encoder is public: it has seen no private image, and nothing it returns is trusted (the release bounds it).
"""

from __future__ import annotations

import hashlib
import importlib
import re
import socket
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.torch_files import load_safetensors, load_torch_file
from dpmepf.shared.whitening import Whitening

BUILTIN = "builtin"
BUILTIN_WEIGHTS = Path(__file__).parent / "weights" / "builtin.safetensors"
STAGE_WIDTHS = (32, 64, 128, 256)
CONVOLUTIONS_PER_STAGE = 2
HEAD_WIDTH = 512
WHITENING = "whitening."  # names of its weights begin so
PIXEL_MEAN = (0.480, 0.448, 0.397)  # of the public training images, 0..1, per colour channel
PIXEL_STD = (0.277, 0.269, 0.282)
OLD_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
PATIENCE = 30.0  # seconds for a server to answer: some firewalls let requests vanish


class EncoderWeightsError(DpmepfError):
    """Encoder weights are missing, unreadable or not the ones named."""


class BuiltinEncoder(nn.Module):
    """A small VGG-like classifier: four stages of two 3×3 convolutions with batch norm and ReLU, and a wide head.

    Max-pooling rounds up, so that 28×28 and 32×32 images both end in 4×4 positions. The head's own convolution serves
    classification only; features are taken from the eight ReLU layers of the stages.

    Attributes:
        whitening: of each of the eight layers, in order, if it was measured (`dpmepf.shared.pretraining.whiten`), else
            empty; without part in the classification.
    """

    def __init__(self, class_count: int = 200) -> None:
        super().__init__()
        first, second, third, fourth = STAGE_WIDTHS
        self.stage1 = _convolutions(3, first, count=CONVOLUTIONS_PER_STAGE)
        self.stage2 = _convolutions(first, second, count=CONVOLUTIONS_PER_STAGE)
        self.stage3 = _convolutions(second, third, count=CONVOLUTIONS_PER_STAGE)
        self.stage4 = _convolutions(third, fourth, count=CONVOLUTIONS_PER_STAGE)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = _convolutions(fourth, HEAD_WIDTH, count=1)
        self.classifier = nn.Linear(HEAD_WIDTH, class_count)
        self.whitening = nn.ModuleList()

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """Those whose ReLU layers are features, in order."""
        return self.stage1, self.stage2, self.stage3, self.stage4

    def forward(self, images: Tensor) -> Tensor:
        x = self.stage1(images)  # N x 32 x 32 x 32
        x = self.stage2(self.pool(x))  # N x 64 x 16 x 16
        x = self.stage3(self.pool(x))  # N x 128 x 8 x 8
        x = self.stage4(self.pool(x))  # N x 256 x 4 x 4
        x = self.head(self.pool(x))  # N x 512 x 2 x 2
        return self.classifier(x.mean(dim=(2, 3)))  # N x class_count


def whitening_of_layers() -> nn.ModuleList:
    """One `Whitening`, not measured yet, for each ReLU layer of the stages, in order."""
    return nn.ModuleList(Whitening(width) for width in STAGE_WIDTHS for _ in range(CONVOLUTIONS_PER_STAGE))


def _convolutions(channels: int, width: int, *, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def encoder_names() -> tuple[str, ...]:
    """The names `load_encoder` takes: `builtin` and torchvision's image classifiers."""
    models = _torchvision_models()
    return (BUILTIN, *(name for name in models.list_models(module=models) if not name.startswith("quantized")))


def load_encoder(
    name: str, weights_file: Path | None = None, *, required_sha256: str | None = None
) -> tuple[nn.Module, str]:
    """Load a frozen encoder in evaluation mode, and the SHA-256 of the file its weights came from.

    Args:
        name: one of `encoder_names()`.
        weights_file: a state dict as .safetensors or .pth; by default the packaged file for `builtin`, else
            torchvision's default weights from its cache or by download.
        required_sha256: what the SHA-256 has to be, if given: looked at before a file is downloaded or read.
    Raises:
        UsageError: the name is unknown.
        EncoderWeightsError: the weights are missing, are others, cannot be read, or do not fit the encoder.
    """
    if name != BUILTIN and name not in encoder_names():
        raise UsageError(
            f"unknown encoder {name!r}: choose {BUILTIN} or a torchvision classifier such as vgg19 or resnet18"
        )
    file = weights_file or (BUILTIN_WEIGHTS if name == BUILTIN else _torchvision_weights_file(name, required_sha256))
    if not file.is_file():
        raise EncoderWeightsError(f"there is no weights file {file}: give an existing file with --encoder-weights")
    sha256 = file_sha256(file)
    if required_sha256 not in (None, sha256):
        raise EncoderWeightsError(
            f"the weights of {name} in {file.name} have the SHA-256 {sha256[:12]}…, but the artifact was made with "
            f"{required_sha256[:12]}…: give the same file by --encoder-weights, or use the same version"
        )
    try:
        state = load_safetensors(file) if file.suffix == ".safetensors" else load_torch_file(file)
        encoder = _builtin_for(state) if name == BUILTIN else _torchvision_model(name)
        _load(encoder, _with_names_of_today(with_batch_counters(encoder, state)))
    except (
        SafetensorError,
        RuntimeError,
        TypeError,
        AttributeError,
        LookupError,
        ValueError,
    ) as error:
        raise EncoderWeightsError(
            f"{file} does not hold weights of the encoder {name}: give that model's state dict as .safetensors or .pth"
        ) from error
    if not is_finite(state):
        raise EncoderWeightsError(f"{file} holds weights that are not finite numbers: give undamaged ones")
    return encoder.float().eval().requires_grad_(False), sha256


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _builtin_for(state: Mapping[str, Tensor]) -> BuiltinEncoder:
    """A built-in encoder with as many classes, and whitening or none, as its weights have."""
    encoder = BuiltinEncoder(len(state["classifier.bias"]))
    if is_whitened(state):
        encoder.whitening = whitening_of_layers()
    return encoder


def is_whitened(state: Mapping[str, Tensor]) -> bool:
    """Whether weights of the built-in encoder come with the whitening of its features."""
    return any(name.startswith(WHITENING) for name in state)


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether all weights are finite numbers; features of others would be none."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def with_batch_counters(encoder: nn.Module, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Add the counters of batch-norm layers, which play no part in evaluation, where a file leaves them out.

    The versions of modules that a .pth file tells of are kept.
    """
    own = encoder.state_dict()
    completed = OrderedDict(state)
    completed.update((n, t) for n, t in own.items() if n.endswith("num_batches_tracked") and n not in state)
    if hasattr(state, "_metadata"):
        completed._metadata = state._metadata  # type: ignore[attr-defined]
    return completed


def _load(encoder: nn.Module, state: OrderedDict[str, Tensor]) -> None:
    try:
        encoder.load_state_dict(state)
    except ValueError:  # MNASNet takes no weights that tell no version, as those of a .safetensors file: today's, then
        state._metadata = encoder.state_dict()._metadata  # type: ignore[attr-defined]
        encoder.load_state_dict(state)


def _with_names_of_today(state: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """torchvision's files of DenseNets are of a time when a layer's parts were named `norm.1`, which is now `norm1`."""
    for name in list(state):
        if found := OLD_DENSENET_NAME.fullmatch(name):
            state["".join(found.groups())] = state.pop(name)
    return state


def _torchvision_models() -> ModuleType:
    """torchvision.models, imported where it is needed: it takes as long as torch itself."""
    return importlib.import_module("torchvision.models")


def _torchvision_model(name: str) -> nn.Module:
    # Skip initialisations that are thrown away at once; torchvision warns about two models otherwise.
    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = _torchvision_models().get_model(name, weights=None, **quiet)
    perceptron = importlib.import_module("torchvision.ops").MLP
    for part, module in list(model.named_modules()):
        if type(module) is perceptron:  # a Sequential, which its tracer looks into under this name alone: Swin's
            model.set_submodule(part, nn.Sequential(*module))
    return model


def _torchvision_weights_file(name: str, required_sha256: str | None) -> Path:
    """The cached file of torchvision's default weights, downloaded when it is not there yet and may be the right one.

    Its name ends in the first digits of its SHA-256.
    """
    url = _torchvision_models().get_model_weights(name)["DEFAULT"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.is_file():
        return file
    digits = file.stem.rpartition("-")[2]
    if required_sha256 is not None and not required_sha256.startswith(digits):
        raise EncoderWeightsError(
            f"the artifact was made with weights of {name} of the SHA-256 {required_sha256[:12]}…, which are not "
            f"torchvision's ({digits}…): ask its maker for that file, then give it by --encoder-weights"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _patience():
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digits, progress=True)
    except (OSError, HTTPException, RuntimeError) as error:
        raise EncoderWeightsError(
            f"the weights of {name} are neither cached as {file} nor downloadable here: fetch {url} on a machine with "
            f"a network and carry it over, then use --encoder-weights {file.name}"
        ) from error
    return file


@contextmanager
def _patience() -> Iterator[None]:
    """Connections opened meanwhile give up when they hear nothing for `PATIENCE` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
