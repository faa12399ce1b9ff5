"""Public images for a data set, chosen otherwise than `dpmepf-synth --public` does (`synthesize/public_images.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from feature_choices import BATCH, Form
from torch import Tensor

from dpmepf.shared.image_loading import load_all
from dpmepf.synthesize.labelling import MeanDiscriminant
from dpmepf.synthesize.public_images import REACH, ChosenImages, choose_public_images, open_public_images, per_class

AS_THE_COMMAND = "herded"
BY_MARGIN = "margin"
OF_ALL = "herded-of-all"


def public_choice(
    choice: str, path: Path, discriminant: MeanDiscriminant, numbers: Sequence[int], form: Form
) -> list[ChosenImages]:
    """Choose from the public images in `path` those of a data set of `numbers` images of each class.

    Args:
        choice: `AS_THE_COMMAND`; as many of each class that are told best from every other one (`BY_MARGIN`), or that
            are herded among all public images, whatever each looks like (`OF_ALL`); "": none.
    """
    if not choice:
        return []
    sources = open_public_images([path])
    resolution, channels = form.resolution, form.channels
    herded = choose_public_images(sources, discriminant, numbers, resolution=resolution, channels=channels)
    if choice == AS_THE_COMMAND:
        return herded
    images, _ = load_all(sources[path], resolution=resolution, channels=channels)
    limits = per_class(herded, len(numbers)).tolist()
    choose = _by_margin if choice == BY_MARGIN else _of_all
    places = choose(images, discriminant, limits)
    return [
        ChosenImages(
            path=path,
            source=sources[path],
            unreadable=0,
            places=np.concatenate(places),
            classes=np.repeat(np.arange(len(places)), [len(of_class) for of_class in places]),
        )
    ]


@torch.inference_mode()
def _by_margin(images: Tensor, discriminant: MeanDiscriminant, limits: Sequence[int]) -> list[np.ndarray]:
    judged = [discriminant.judge(batch) for batch in images.split(BATCH)]
    classes, margins, squared_distances = map(torch.cat, zip(*judged, strict=True))
    margins[squared_distances > REACH * discriminant.squared_radius] = -torch.inf
    best = [torch.where(classes == c, margins, -torch.inf).topk(limit).indices for c, limit in enumerate(limits)]
    return [rows.sort().values.cpu().numpy() for rows in best]


@torch.inference_mode()
def _of_all(images: Tensor, discriminant: MeanDiscriminant, limits: Sequence[int]) -> list[np.ndarray]:
    """As `herd`, but without products of all with all: classes take turns, and no image is in two."""
    features = torch.cat([discriminant.features(batch) for batch in images.split(BATCH)])
    metric, means = discriminant.metric, discriminant.means
    half_squares = torch.cat([0.5 * (part * metric.apply(part)).sum(dim=1) for part in features.split(BATCH)])
    missing = torch.zeros_like(means)  # of a class with t images: (t + 1)·mean − their sum
    chosen: list[list[int]] = [[] for _ in limits]
    for _ in range(max(limits)):
        missing += means
        gains = metric.apply(missing) @ features.T - half_squares
        for class_index, limit in enumerate(limits):
            if len(chosen[class_index]) < limit:
                row = int(gains[class_index].argmax())
                chosen[class_index].append(row)
                missing[class_index] -= features[row]
                half_squares[row], gains[:, row] = torch.inf, -torch.inf  # it is taken
    return [np.sort(np.array(rows, np.int64)) for rows in chosen]
