"""What a release adds to the sums, seen from the artifact."""

from __future__ import annotations

from artifact_examples import FEATURE_MAP

from dpmepf.artifacts.merging import merge_artifacts
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


def test_a_merged_artifact_has_the_noise_of_all_its_releases_together() -> None:
    """Three releases of no record, 4,000 features and 400 counts: σ within 7 % and 20 %, over 5.6 standard errors each;
    false alarm below 1e-7. Each release alone, and the sum of their σ, are further off than that."""
    classes = tuple(map(str, range(400)))
    parts = [
        (
            f"{epsilon}",
            release(
                ClassSums(class_count=len(classes), dimension=10, non_negative=True),
                classes=classes,
                feature_map=FEATURE_MAP,
                epsilon=epsilon,
                delta=1e-5,
                relation=NeighbouringRelation.REPLACE_ONE,
            ),
        )
        for epsilon in (1.0, 1.2, 2.0)
    ]
    merged = merge_artifacts(parts)
    assert 0.93 < (merged.feature_sums() / merged.noise_std_features).std() < 1.07
    assert 0.8 < (merged.counts() / merged.noise_std_counts).std() < 1.2
    alone = [artifact.noise_std_features for _, artifact in parts]
    assert 1.07 * max(alone) < 0.93 * merged.noise_std_features < 1.07 * merged.noise_std_features < 0.93 * sum(alone)
