"""What a release adds to the sums, seen from the artifact."""

from __future__ import annotations

from artifact_examples import FEATURE_MAP

from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed.release import release
from dpmepf.embed.summing import ClassSums


def test_counts_get_the_same_noise_as_features() -> None:
    """400 counts of empty classes: σ within 20 %, 5.6 standard errors; false alarm below 1e-7."""
    artifact = release(
        ClassSums(class_count=400, dimension=1, non_negative=True),
        classes=tuple(map(str, range(400))),
        feature_map=FEATURE_MAP,
        epsilon=1.0,
        delta=1e-5,
        relation=NeighbouringRelation.ADD_OR_REMOVE_ONE,
    )
    for noise in (artifact.counts() / artifact.noise_std_counts, artifact.feature_sums() / artifact.noise_std_features):
        assert 0.8 < noise.std() < 1.2
