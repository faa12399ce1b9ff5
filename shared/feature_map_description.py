"""What describes a feature map: everything both sides need to compute the same features. All of it is public.

It travels in the artifact. Without PyTorch, so that reading an artifact needs none.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dpmepf.shared.errors import DpmepfError

SUPPORTED_RESOLUTIONS = (28, 32, 64, 128)
_LONGEST_NAME = 64
"""torchvision's longest names of layers have some 50 letters."""


class FeatureMapError(DpmepfError):
    """A feature map's description is malformed or cannot be built here."""


@dataclass(frozen=True, kw_only=True)
class FeatureMapDescription:
    """Everything both sides need to compute the same features. All of it is public.

    encoder, weights_sha256: the encoder's name and the SHA-256 of its weights file.
    layers: names of the activations, as `create_feature_extractor` takes them.
    pooling: for each layer how many positions its activation is average-pooled to, at most, along each side.
    normalisation: `per-layer` scales every layer (and moment) to norm 1 before joining, `joint` each moment of all
        layers together; `whitened` is `per-layer` after the whitening that comes with the encoder's weights, of an
        encoder whose parameters, batch norm folded in, are rounded to bfloat16.
    moments: 1 for the activations, 2 for their squares.
    layer_weights: share of each layer in the squared norm, adding up to 1; within a layer the moments share equally.
        If `joint`: what squares of its activations are multiplied by before the vector is scaled.
    resolution: side of the square image in pixels; channels: 1 (grey) or 3 (RGB).
    pixel_mean, pixel_std: standardisation of pixels in [0, 1], per colour channel of the encoder.
    """

    preset: str
    encoder: str
    weights_sha256: str
    layers: tuple[str, ...]
    pooling: tuple[int, ...]
    normalisation: str
    moments: tuple[int, ...]
    layer_weights: tuple[float, ...]
    resolution: int
    channels: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("layer_weights", "pixel_mean", "pixel_std"):  # written as the same text whether whole or not
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        _require(_is_name(self.preset, "-."), "preset", self.preset, "a short name")
        _require(_is_name(self.encoder), "encoder", self.encoder, "a model's name")
        sha256_is_hex = re.fullmatch(r"[0-9a-f]{64}", self.weights_sha256) is not None
        _require(sha256_is_hex, "weights_sha256", self.weights_sha256, "64 hexadecimal digits")
        names_are_plain = all(_is_name(layer, "-.") for layer in self.layers)
        distinct = len(set(self.layers)) == len(self.layers)
        _require(0 < len(self.layers) <= 512 and names_are_plain and distinct, "layers", self.layers, "distinct names")
        of_each_layer = len(self.pooling) == len(self.layers) and all(1 <= p <= 512 for p in self.pooling)
        _require(of_each_layer, "pooling", self.pooling, "one number from 1 to 512 per layer")
        known = self.normalisation in ("per-layer", "joint", "whitened")
        _require(known, "normalisation", self.normalisation, "per-layer, joint or whitened")
        _require(self.moments in ((1,), (2,), (1, 2)), "moments", self.moments, "1, 2 or both")
        first_alone = self.normalisation != "whitened" or self.moments == (1,)
        _require(first_alone, "moments", self.moments, "1 alone for whitened activations")
        weights_are_shares = len(self.layer_weights) == len(self.layers) and all(w > 0 for w in self.layer_weights)
        sums_to_one = weights_are_shares and abs(math.fsum(self.layer_weights) - 1) < 1e-6
        _require(sums_to_one, "layer_weights", self.layer_weights, "one positive share per layer, adding up to 1")
        supported = self.resolution in SUPPORTED_RESOLUTIONS
        _require(supported, "resolution", self.resolution, f"one of {SUPPORTED_RESOLUTIONS}")
        _require(self.channels in (1, 3), "channels", self.channels, "1 or 3")
        for name, values in (("pixel_mean", self.pixel_mean), ("pixel_std", self.pixel_std)):
            finite = len(values) == 3 and all(math.isfinite(value) for value in values)
            _require(finite, name, values, "three finite numbers")
        _require(min(self.pixel_std) > 1e-3, "pixel_std", self.pixel_std, "numbers above 0.001")

    def to_json(self, *, one_pooling: bool = False) -> str:
        """The description as artifacts hold it; with the first layer's pooling for that of all, as they once did."""
        pooling = {"pooling": self.pooling[0]} if one_pooling else {}
        return json.dumps(asdict(self) | pooling, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> FeatureMapDescription:
        """Read a description; FeatureMapError when it is not exactly one of ours."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FeatureMapError("the feature map's description is not JSON") from error
        if isinstance(data, dict) and type(data.get("pooling")) is int and isinstance(data.get("layers"), list):
            data["pooling"] = [data["pooling"]] * len(data["layers"])  # of all layers alike: so it was written once
        return cls(**_typed_fields(cls, data))


def _is_name(name: str, punctuation: str = "") -> bool:
    """Whether it is short and of ASCII letters, digits, underscores and `punctuation`."""
    return re.fullmatch(rf"[\w{re.escape(punctuation)}]{{1,{_LONGEST_NAME}}}", name, re.ASCII) is not None


def _require(holds: bool, name: str, found: object, allowed: str) -> None:
    if not holds:
        raise FeatureMapError(f"the feature map's {name} is {str(found)[:80]!r}; allowed is {allowed}")


def _typed_fields(cls: type[FeatureMapDescription], data: object) -> dict[str, Any]:
    """Check names and types of the fields before the values are looked at."""
    names = {field.name: str(field.type) for field in fields(cls)}
    if not isinstance(data, Mapping) or set(data) != set(names):
        raise FeatureMapError(f"the feature map's description must have exactly the fields {', '.join(names)}")
    parsed: dict[str, Any] = {}
    for name, annotation in names.items():
        value = data[name]
        elements: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
        element = elements[re.sub(r"tuple\[(\w+), \.\.\.\]", r"\1", annotation)]
        values = value if annotation.startswith("tuple") else [value]
        if not isinstance(values, list) or not all(isinstance(v, element) and not isinstance(v, bool) for v in values):
            raise FeatureMapError(f"the feature map's {name} is not of the type {annotation}")
        # JSON's integers may be larger than any float.
        if "float" in annotation and not all(abs(v) <= sys.float_info.max for v in values):
            raise FeatureMapError(f"the feature map's {name} holds a number that is too large")
        parsed[name] = tuple(float(v) if "float" in annotation else v for v in values)
        if not annotation.startswith("tuple"):
            parsed[name] = value
    return parsed
