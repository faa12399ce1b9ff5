"""Trusted core: the one release. Exact sums in, noisy artifact out, and the sums are gone.

The whole of the privacy guarantee is in five steps, each a function with its own guarantee: `bound_records` (and, for
persons, `clip_contribution`) and `ClassSums` (before this file), `plan_release` (sensitivity and σ),
`add_discrete_gaussian_noise`, and rounding, which is post-processing. `PROOF.md` beside this file puts them together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dpmepf.artifacts.artifact import Artifact, check_size
from dpmepf.artifacts.ledger import UNNAMED, Ledger, plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed.noise import add_discrete_gaussian_noise
from dpmepf.embed.summing import ClassSums, ExactSums, SummingError
from dpmepf.shared.feature_map_description import FeatureMapDescription


def release(
    sums: ClassSums,
    *,
    classes: tuple[str, ...],
    feature_map: FeatureMapDescription,
    epsilon: float,
    delta: float,
    relation: NeighbouringRelation,
    inferred_schema: tuple[str, ...] = (),
    dataset_name: str = UNNAMED,
    charge: Callable[[Ledger], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Artifact:
    """Release the feature sums and the counts of all classes, once, through a single discrete Gaussian mechanism.

    Guarantee: the artifact is (epsilon, delta)-differentially private under `relation`, for the unit of privacy that
        `sums` bounded: one image, or one person. Nothing else that depends on the records leaves this function, on any
        path.
    Assumes: the other arguments are public: they do not depend on the records, or are declared as treated so.
    Source: PROOF.md, theorem.
    Args:
        sums: the accumulator of all records; emptied here, so that a second release of the same sums cannot happen.
        classes: K public class names. feature_map: the public description of φ.
        epsilon: > 0, in nats. delta: in (0, 1).
        inferred_schema: which of classes, resolution and channels were read from the form of the data.
        dataset_name: the custodian's own public name of the data set.
        charge: enters the release in a register before any noise is drawn, or raises; then nothing is released.
        progress: called with the number of coordinates just noised (public: K·(D+1) in all).
    Returns: an artifact whose arrays are noisy, and stored in steps of at most σ/16.
    Edge cases: no record at all releases pure noise. Parameters that cannot be met are refused before the sums are
        taken, so they can still be released with others; any later failure releases nothing, and the sums are lost.
    Raises: UsageError for epsilon, delta or a size out of range; SummingError for sums released before or of another
        number of classes; NoiseError.
    """
    if len(classes) != sums.class_count:
        raise SummingError(f"{len(classes)} class names do not fit sums of {sums.class_count} classes")
    check_size(sums.class_count, sums.dimension)
    ledger = plan_release(
        epsilon=epsilon,
        delta=delta,
        relation=relation,
        feature_dimension=sums.dimension,
        class_count=sums.class_count,
        non_negative_features=sums.non_negative,
        inferred_schema=inferred_schema,
        dataset_name=dataset_name,
        unit_of_privacy=sums.unit_of_privacy,
    )
    exact = mechanism_input(sums.take())
    if charge is not None:  # last of all: what fails before costs nothing, what fails after stays charged
        charge(ledger)
    noisy = add_discrete_gaussian_noise(exact, sigma=ledger.sigma, progress=progress)
    stored = coarsen(noisy, exponent=ledger.coarsening_exponent)
    split = sums.class_count * sums.dimension
    return Artifact(
        noisy_sums=stored[:split].reshape(sums.class_count, sums.dimension),
        noisy_counts=stored[split:],
        classes=classes,
        feature_map=feature_map,
        ledger=ledger,
    )


def mechanism_input(sums: ExactSums) -> npt.NDArray[np.int64]:
    """The integers that the mechanism noises: Σ_x (e_y ⊗ q, W e_y), K·D feature sums, then K weighted counts.

    Guarantee: one record (one person, where sums are by person) adds a vector u with ‖u‖² <= 2^(2k) + W², exactly
        (PROOF.md, claims 3 and 6); no overflow, since `ClassSums` takes at most 2^(62-k) images and W < 2^k.
    """
    return np.concatenate([sums.features.ravel(), sums.weighted_counts])


def coarsen(noisy: npt.NDArray[np.int64], *, exponent: int) -> npt.NDArray[np.int64]:
    """Round to the nearest multiple of 2^exponent, halves up, and divide by it. Post-processing of noisy values."""
    if exponent == 0:
        return noisy
    return (noisy >> exponent) + ((noisy >> (exponent - 1)) & 1)  # never forms noisy + 2^(exponent-1): no overflow
