"""What others report for the same private images: figures copied from their papers, none of them measured here.

Source, where no other is named: DPImageBench, A Unified Benchmark for Differentially Private Image Synthesis, CCS 2025:
accuracy in percent of classifiers trained on synthetic and tested on real images, δ = 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ADD_OR_REMOVE = "add or remove"
REPLACE = "replace"
UNCHECKED = "not checked"
NO_PUBLIC, IMAGENET = "none", "ImageNet"


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
    cifar10: tuple[float, float] | None = None,
) -> PublishedMethod:
    pairs = {"MNIST": mnist, "CIFAR-10": cifar10}
    accuracy = {data: dict(zip((1.0, 10.0), pair, strict=True)) for data, pair in pairs.items() if pair is not None}
    return PublishedMethod(name=name, relation=relation, public=public, accuracy=accuracy)


PUBLISHED = (
    _method("DP-MERF", REPLACE, NO_PUBLIC, mnist=(80.3, 81.3), cifar10=(27.2, 29.0)),
    _method("DP-NTK", UNCHECKED, NO_PUBLIC, mnist=(50.0, 91.3), cifar10=(17.0, 28.2)),
    _method("DP-Kernel", UNCHECKED, NO_PUBLIC, mnist=(94.0, 93.6), cifar10=(26.4, 25.1)),
    _method("DP-GAN", ADD_OR_REMOVE, NO_PUBLIC, mnist=(92.4, 92.7), cifar10=(26.2, 30.5)),
    _method("DPDM", ADD_OR_REMOVE, NO_PUBLIC, mnist=(89.2, 97.7), cifar10=(28.9, 36.8)),
    _method("DP-FETA", ADD_OR_REMOVE, NO_PUBLIC, mnist=(95.6, 98.1), cifar10=(35.1, 43.3)),
    _method("PDP-Diffusion", ADD_OR_REMOVE, IMAGENET, mnist=(94.5, 97.4), cifar10=(59.3, 70.1)),
    _method("PrivImage", ADD_OR_REMOVE, IMAGENET, mnist=(94.0, 97.8), cifar10=(74.5, 78.4)),
    _method("PE", UNCHECKED, IMAGENET, cifar10=(64.6, 75.3)),
    _method("DP-MEPF, as others report it", REPLACE, IMAGENET, cifar10=(29.4, 51.0)),
)
