"""What others report for the same private images: figures copied from their papers, none of them measured here.

Source, where no other is named: DPImageBench, A Unified Benchmark for Differentially Private Image Synthesis, CCS 2025,
*Main Results* in the README of its repository (commit 565f8d7, all of its methods): accuracy in percent of classifiers
trained on synthetic and tested on real images, δ = 1e-5.

Relations of two methods are read from their authors' code: PE's noise (microsoft/DPSDA, pe/dp/gaussian.py) is that of a
sensitivity of 1 where a record has votes of length 1, so for records added or removed; GS-WGAN's
(DingfanChen/GS-WGAN, source/main.py) of a sensitivity of 2 where a gradient is clipped to 1, so for records replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ADD_OR_REMOVE = "add or remove"
REPLACE = "replace"
NO_PUBLIC, IMAGENET, STABLE_DIFFUSION = "none", "ImageNet", "Stable Diffusion's"


@dataclass(frozen=True, kw_only=True)
class PublishedMethod:
    """One method; `accuracy` is in percent, by data set and ε. `public`: the public images it is said to learn from."""

    name: str
    relation: str
    public: str
    accuracy: dict[str, dict[float, float]] = field(repr=False)


def _method(
    name: str,
    relation: str,
    public: str,
    *,
    mnist: tuple[float, float] | None = None,
    fashion: tuple[float, float] | None = None,
    cifar10: tuple[float, float] | None = None,
) -> PublishedMethod:
    pairs = {"MNIST": mnist, "Fashion-MNIST": fashion, "CIFAR-10": cifar10}
    accuracy = {data: dict(zip((1.0, 10.0), pair, strict=True)) for data, pair in pairs.items() if pair is not None}
    return PublishedMethod(name=name, relation=relation, public=public, accuracy=accuracy)


PUBLISHED = (
    _method("DP-MERF", REPLACE, NO_PUBLIC, mnist=(80.3, 81.3), fashion=(62.2, 62.2), cifar10=(27.2, 29.0)),
    _method("DP-NTK", REPLACE, NO_PUBLIC, mnist=(50.0, 91.3), fashion=(64.4, 76.3), cifar10=(17.0, 28.2)),
    _method("DP-Kernel", REPLACE, NO_PUBLIC, mnist=(94.0, 93.6), fashion=(68.4, 70.0), cifar10=(26.4, 25.1)),
    _method("GS-WGAN", REPLACE, NO_PUBLIC, mnist=(72.4, 75.3), fashion=(52.7, 56.7), cifar10=(20.4, 21.3)),
    _method("DP-GAN", ADD_OR_REMOVE, NO_PUBLIC, mnist=(92.4, 92.7), fashion=(71.8, 70.3), cifar10=(26.2, 30.5)),
    _method("DPDM", ADD_OR_REMOVE, NO_PUBLIC, mnist=(89.2, 97.7), fashion=(76.4, 85.6), cifar10=(28.9, 36.8)),
    _method("DP-FETA", ADD_OR_REMOVE, NO_PUBLIC, mnist=(95.6, 98.1), fashion=(81.7, 87.3), cifar10=(35.1, 43.3)),
    _method("PE", ADD_OR_REMOVE, IMAGENET, mnist=(27.9, 32.7), fashion=(47.9, 57.8), cifar10=(64.6, 75.3)),
    _method("PDP-Diffusion", ADD_OR_REMOVE, IMAGENET, mnist=(94.5, 97.4), fashion=(79.2, 85.4), cifar10=(59.3, 70.1)),
    _method(
        "DP-LDM (SD)",
        ADD_OR_REMOVE,
        STABLE_DIFFUSION,
        mnist=(78.8, 94.4),
        fashion=(75.9, 81.6),
        cifar10=(63.0, 69.9),
    ),
    _method("DP-LDM", ADD_OR_REMOVE, IMAGENET, mnist=(44.2, 95.5), fashion=(62.3, 86.3), cifar10=(41.7, 64.8)),
    _method("DP-LoRA", ADD_OR_REMOVE, IMAGENET, mnist=(82.2, 97.1), fashion=(63.5, 83.8), cifar10=(64.6, 77.2)),
    _method("PrivImage", ADD_OR_REMOVE, IMAGENET, mnist=(94.0, 97.8), fashion=(79.9, 87.1), cifar10=(74.5, 78.4)),
    _method("DP-MEPF, elsewhere, source not checked", REPLACE, IMAGENET, cifar10=(29.4, 51.0)),
)
