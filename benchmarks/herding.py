"""Public images chosen by kernel herding: together they have the mean features of a class, whatever each looks like.

`dpmepf-synth --public` chooses images one by one instead, those that look like a class (`synthesize/public_images.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from feature_choices import BATCH, Form
from torch import Tensor

from dpmepf.shared.image_loading import load_all
from dpmepf.synthesize.labelling import MeanDiscriminant
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.public_images import REACH, ChosenImages, choose_public_images, open_public_images, per_class

HERDED = {"herded": "all public images", "herded-alike": "those that look like the class"}
"""By name: among which images a class's are looked for."""


def public_choice(
    choice: str, path: Path, discriminant: MeanDiscriminant, numbers: Sequence[int], form: Form
) -> list[ChosenImages]:
    """Choose from the public images in `path` those of a data set of `numbers` images of each class.

    Args:
        choice: `margin`: as `dpmepf-synth --public` does; a key of `HERDED`: as many of each class; "": none.
    """
    if not choice:
        return []
    sources = open_public_images([path])
    resolution, channels = form.resolution, form.channels
    by_margin = choose_public_images(sources, discriminant, numbers, resolution=resolution, channels=channels)
    if choice == "margin":
        return by_margin
    images, _ = load_all(sources[path], resolution=resolution, channels=channels)
    features, classes, within = _look_at(images, discriminant)
    alike = within & (classes == torch.arange(len(numbers))[:, None])
    places = herd(
        features,
        discriminant.means,
        discriminant.metric,
        per_class(by_margin, len(numbers)).tolist(),
        allowed=alike if choice == "herded-alike" else torch.ones_like(alike),
    )
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
def _look_at(images: Tensor, discriminant: MeanDiscriminant) -> tuple[Tensor, Tensor, Tensor]:
    """Features N×D of N×C×R×R images, the class that each is found to be of, and whether it is not too far for that."""
    features, classes, within = [], [], []
    for batch in images.split(BATCH):
        features.append(discriminant.features_of(batch).float())
        best, _, squared_distances = discriminant.judge(batch)
        classes.append(best)
        within.append(squared_distances <= REACH * discriminant.squared_radius)
    return torch.cat(features), torch.cat(classes), torch.cat(within)


@torch.inference_mode()
def herd(
    features: Tensor, means: Tensor, metric: WithinClassMetric, limits: Sequence[int], *, allowed: Tensor
) -> list[np.ndarray]:
    """Choose rows of `features` so that their mean comes near each class's.

    One after another, the one that brings the mean of those chosen so far nearest: with Σ the sum of t of them and m
    the class's mean, ‖(Σ + f)/(t + 1) − m‖² is least where fᵀA((t + 1)m − Σ) − fᵀAf/2 is largest. For features of one
    length that is kernel herding (Chen, Welling & Smola, UAI 2010; Bach, Lacoste-Julien & Obozinski, ICML 2012). The
    classes take turns, and a row is chosen once.

    Args:
        features: N×D.
        means: K×D.
        metric: A.
        limits: K numbers of rows.
        allowed: bool K×N, rows that a class may choose.

    Returns:
        For each class the rows, in the order of their choice; fewer than its limit when no more are allowed.
    """
    half_squares = torch.cat([0.5 * (part * metric.apply(part)).sum(dim=1) for part in features.split(BATCH)])
    free = allowed.clone()
    missing = torch.zeros_like(means)  # (t + 1)·m − Σ
    chosen: list[list[int]] = [[] for _ in limits]
    for _ in range(max(limits)):
        missing += means
        gains = metric.apply(missing) @ features.T - half_squares
        for class_index, limit in enumerate(limits):
            if len(chosen[class_index]) == limit or not free[class_index].any():
                continue
            row = int(gains[class_index].masked_fill(~free[class_index], -torch.inf).argmax())
            chosen[class_index].append(row)
            missing[class_index] -= features[row]
            free[:, row] = False
    return [np.array(rows, np.int64) for rows in chosen]
