"""Merging: exact sums, the right noise, the largest claim, and a refusal of its own for whatever does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from artifact_examples import FEATURE_MAP, example_artifact, example_ledger, example_parts

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.claims import check_claims, recomputed_delta, recomputed_epsilon
from dpmepf.artifacts.errors import (
    InconsistentArtifactError,
    LedgerError,
    MismatchError,
    OutOfRangeError,
    RepeatedReleaseError,
    UnsupportedVersionError,
)
from dpmepf.artifacts.hdf5_file import read_artifact, write_artifact
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.merged_ledger import (
    COMMON,
    LARGEST_RELEASES,
    MergedLedger,
    merge_ledgers,
    mismatch,
    read_ledger,
    sum_sigma,
)
from dpmepf.artifacts.merging import merge_artifacts
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.errors import UsageError

ADD_OR_REMOVE, REPLACE = NeighbouringRelation


def parts_of_all_steps() -> list[tuple[str, Artifact]]:
    """Three artifacts whose noise, and with it the stored step, differs; the values are random and large."""
    generator, parts = np.random.default_rng(3), []
    for name, artifact in example_parts("a", "b", "c"):
        limit = 2 ** (61 - artifact.ledger.coarsening_exponent)
        values = [
            generator.integers(-limit, limit, array.shape) for array in (artifact.noisy_sums, artifact.noisy_counts)
        ]
        parts.append((name, dataclasses.replace(artifact, noisy_sums=values[0], noisy_counts=values[1])))
    assert len({artifact.ledger.coarsening_exponent for _, artifact in parts}) == 3
    return parts


def in_lattice_units(artifact: Artifact) -> list[int]:
    stored = [*artifact.noisy_sums.ravel().tolist(), *artifact.noisy_counts.tolist()]
    return [value << artifact.ledger.coarsening_exponent for value in stored]


def test_the_merged_integers_are_the_sum_of_all_parts_without_any_rounding() -> None:
    parts = parts_of_all_steps()
    merged = merge_artifacts(parts)
    columns = zip(*(in_lattice_units(artifact) for _, artifact in parts), strict=True)
    assert in_lattice_units(merged) == [sum(values) for values in columns]
    assert merged.ledger.coarsening_exponent == min(artifact.ledger.coarsening_exponent for _, artifact in parts)


def test_neither_the_order_nor_the_grouping_of_merges_changes_a_number() -> None:
    parts = parts_of_all_steps()
    whole = merge_artifacts(parts)
    regrouped = [merge_artifacts([("ab", merge_artifacts(parts[:2])), parts[2]])]
    regrouped += [merge_artifacts([parts[0], ("bc", merge_artifacts(parts[1:]))])]
    assert [merged.ledger for merged in regrouped] == [whole.ledger] * 2  # flat, in the order given
    for merged in [*regrouped, *(merge_artifacts(order) for order in permutations(parts))]:
        np.testing.assert_array_equal(merged.noisy_sums, whole.noisy_sums)
        np.testing.assert_array_equal(merged.noisy_counts, whole.noisy_counts)
        assert merged.ledger.noise_sigma == whole.ledger.noise_sigma
        assert merged.noise_std_features == pytest.approx(whole.noise_std_features, rel=1e-15)


def test_the_parts_are_left_as_they_were() -> None:
    parts = parts_of_all_steps()
    before = [artifact.noisy_sums.copy() for _, artifact in parts]
    merge_artifacts(parts)
    for (_, artifact), values in zip(parts, before, strict=True):
        np.testing.assert_array_equal(artifact.noisy_sums, values)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("array", ["noisy_sums", "noisy_counts"])
@pytest.mark.parametrize("coarsening_exponent", [0, 23])
def test_a_sum_beyond_64_bits_is_refused_and_never_wraps(array: str, sign: int, coarsening_exponent: int) -> None:
    parts = []
    for name, artifact in example_parts("a", "b", epsilons=(1.0, 0.1)):
        ledger = artifact.ledger
        if coarsening_exponent == 0:  # a forged one: the step is not that of its noise
            ledger = dataclasses.replace(ledger, coarsening_exponent=0)
        largest = min(2 ** (63 - ledger.coarsening_exponent), 2**63 - 1)
        full = np.full_like(getattr(artifact, array), sign * largest)
        parts.append((name, dataclasses.replace(artifact, ledger=ledger, **{array: full})))
    with pytest.raises(OutOfRangeError):
        merge_artifacts(parts)


def test_the_noise_of_the_sum_is_that_of_all_parts_together_coarsening_included() -> None:
    parts = parts_of_all_steps()
    merged = merge_artifacts(parts)
    for name in ("noise_std_features", "noise_std_counts"):
        together = math.hypot(*(getattr(artifact, name) for _, artifact in parts))
        assert getattr(merged, name) == pytest.approx(together, rel=1e-14)
        assert getattr(merged, name) > getattr(parts[2][1], name) > getattr(parts[0][1], name)
    sigmas = [release.sigma for release in merged.ledger.releases]
    assert merged.ledger.noise_sigma == pytest.approx(math.hypot(*sigmas), rel=1e-15)
    assert merged.noise_std_features > merged.ledger.noise_sigma / 2.0**26  # coarsening adds noise


def test_the_stored_step_stays_at_most_a_sixteenth_of_the_least_noise() -> None:
    merged = merge_artifacts(parts_of_all_steps())
    assert 2**merged.ledger.coarsening_exponent <= min(release.sigma for release in merged.ledger.releases) / 16


def test_the_noise_of_a_single_release_is_its_sigma_bit_by_bit() -> None:
    for epsilon in (0.1, 0.3, 1.0, 2.0, 7.0):
        ledger = example_ledger(epsilon=epsilon)
        assert sum_sigma(ledger.releases) == ledger.sigma


@pytest.mark.parametrize("relation", NeighbouringRelation)
def test_the_claim_is_the_largest_epsilon_and_the_largest_delta(relation: NeighbouringRelation) -> None:
    strict = example_artifact(epsilon=0.5, delta=1e-5, relation=relation)
    loose = example_artifact(epsilon=2.0, delta=1e-7, relation=relation)
    merged = merge_artifacts([("a", strict), ("b", loose)])
    assert (merged.ledger.epsilon, merged.ledger.delta) == (2.0, 1e-5)
    assert merged.ledger.relation is relation
    assert all(check.holds for check in check_claims(merged))
    for delta in (1e-5, 1e-7, 1e-9):
        worst = max(
            recomputed_epsilon(artifact.ledger, delta, relation, coordinates=artifact.coordinates)
            for artifact in (strict, loose)
        )
        assert recomputed_epsilon(merged.ledger, delta, relation, coordinates=merged.coordinates) == worst
    for epsilon in (0.0, 0.5, 2.0):
        worst = max(
            recomputed_delta(artifact.ledger, epsilon, relation, coordinates=artifact.coordinates)
            for artifact in (strict, loose)
        )
        assert recomputed_delta(merged.ledger, epsilon, relation, coordinates=merged.coordinates) == worst


def test_the_noise_of_a_sum_has_the_same_bits_on_every_machine() -> None:
    """Correctly rounded at each step. A C library's power is not: an audit on another machine failed by it."""
    ledgers = tuple(example_ledger(epsilon=epsilon) for epsilon in (0.3, 0.7, 1.1))
    rounded = math.fsum(float(Fraction(ledger.sigma) ** 2) for ledger in ledgers)
    assert sum_sigma(ledgers) == math.sqrt(rounded)


def test_a_merged_ledger_tells_what_its_releases_inferred_and_are_called() -> None:
    parts = [
        ("a", example_artifact(dataset_name="x", inferred_schema=("channels",))),
        ("b", example_artifact(dataset_name="y", inferred_schema=("classes", "channels"))),
        ("c", example_artifact(dataset_name="x")),
    ]
    ledger = merge_artifacts(parts).ledger
    assert ledger.inferred_schema == ("classes", "channels")
    assert ledger.dataset_name == "x + y"
    assert (ledger.mechanism, ledger.coordinates) == ("discrete-gaussian", 3 * 49)


def other_feature_map(**changes: Any) -> Callable[[Artifact], Artifact]:
    return lambda artifact: dataclasses.replace(artifact, feature_map=dataclasses.replace(FEATURE_MAP, **changes))


def other_ledger(**changes: Any) -> Callable[[Artifact], Artifact]:
    return lambda artifact: dataclasses.replace(artifact, ledger=dataclasses.replace(artifact.ledger, **changes))


def other_example(**changes: Any) -> Callable[[Artifact], Artifact]:
    return lambda artifact: example_artifact(**changes)


MISMATCHES: dict[str, tuple[Callable[[Artifact], Artifact], str]] = {
    "a class more": (other_example(classes=("cat", "dog", "Übermut 7", "emu")), "its number of classes is 4, not 3"),
    "another class": (other_example(classes=("cat", "fox", "Übermut 7")), "its class 2 is 'fox', not 'dog'"),
    "another order": (other_example(classes=("dog", "cat", "Übermut 7")), "its classes are in another order"),
    "other weights": (
        other_feature_map(weights_sha256="1" * 64),
        f"its feature map's weights_sha256 is '{'1' * 64}', not '{'0' * 64}'",
    ),
    "another encoder": (other_feature_map(encoder="vgg19"), "its feature map's encoder is 'vgg19', not 'builtin'"),
    "another resolution": (other_feature_map(resolution=64), "its feature map's resolution is 64, not 32"),
    "another relation": (
        other_example(relation=REPLACE),
        "its neighbouring relation is replace-one, not add-or-remove-one",
    ),
    "another unit": (other_example(unit_of_privacy="one person"), "its unit of privacy is one person, not one image"),
    "another dimension": (other_example(feature_dimension=49), "its feature dimension is 49, not 48"),
    "another class count": (other_ledger(class_count=2), "its number of classes is 2, not 3"),
    "another lattice": (other_ledger(lattice_exponent=25), "its lattice exponent is 25, not 26"),
    "another count weight": (other_ledger(count_weight_lattice=7), "its count weight is 7, not 6710886"),
    "negative features": (
        other_example(non_negative_features=False),
        "its clamping of negative features is False, not True",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), MISMATCHES.values(), ids=MISMATCHES)
def test_artifacts_that_differ_are_refused_in_a_sentence_of_their_own(
    change: Callable[[Artifact], Artifact], sentence: str
) -> None:
    first, other = example_artifact(), change(example_artifact())
    for parts in ([("a", first), ("b", other)], [("a", first), ("c", example_artifact()), ("b", other)]):
        with pytest.raises(MismatchError) as caught:
            merge_artifacts(parts)
        assert str(caught.value) == f"b cannot be merged with a: {sentence}"


def test_every_field_of_a_feature_map_has_to_agree() -> None:
    changes: dict[str, Any] = {
        "preset": "mine",
        "encoder": "vgg19",
        "weights_sha256": "f" * 64,
        "layers": ("stage1", "stage3"),
        "pooling": (4, 2),
        "normalisation": "joint",
        "moments": (1, 2),
        "layer_weights": (0.25, 0.75),
        "resolution": 64,
        "channels": 1,
        "pixel_mean": (0.5, 0.5, 0.25),
        "pixel_std": (0.25, 0.25, 0.5),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(FEATURE_MAP)}
    for name, value in changes.items():
        other = other_feature_map(**{name: value})(example_artifact())
        with pytest.raises(MismatchError, match=f"its feature map's {name} is"):
            merge_artifacts([("a", example_artifact()), ("b", other)])


def test_one_release_in_two_parts_is_refused_also_inside_merged_ones() -> None:
    (a, b, c) = example_parts("a", "b", "c")
    merged = ("ab.h5", merge_artifacts([a, b]))
    for parts, holder in (([a, ("copy.h5", a[1])], "a.h5"), ([merged, c, ("copy.h5", b[1])], "ab.h5")):
        with pytest.raises(RepeatedReleaseError) as caught:
            merge_artifacts(parts)
        assert str(caught.value).startswith("copy.h5 holds the release") and f"so does {holder}:" in str(caught.value)


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_parts_are_nothing_to_merge(number: int) -> None:
    with pytest.raises(UsageError, match=f"{number} artifact"):
        merge_artifacts(example_parts("a")[:number])


def test_there_is_a_largest_number_of_releases() -> None:
    whole = merge_artifacts([(str(number), example_artifact()) for number in range(LARGEST_RELEASES)])
    assert len(whole.ledger.releases) == LARGEST_RELEASES
    with pytest.raises(LedgerError, match=rf"{LARGEST_RELEASES + 1} release\(s\) merged; allowed are 2 to"):
        merge_artifacts([("whole", whole), ("one", example_artifact())])


def test_the_longest_merged_ledger_can_be_written_and_read(tmp_path: Path) -> None:
    """The most releases, each with the longest name in the longest characters."""
    artifacts = [example_artifact(dataset_name="𝕏" * 200, delta=1e-5 / 3) for _ in range(LARGEST_RELEASES)]
    merged = merge_artifacts([("part", artifact) for artifact in artifacts])
    write_artifact(tmp_path / "all.h5", merged)
    assert read_artifact(tmp_path / "all.h5").ledger == merged.ledger


def test_reading_gives_back_a_merged_artifact(tmp_path: Path) -> None:
    merged = merge_artifacts(example_parts("a", "b", "c"))
    write_artifact(tmp_path / "all.h5", merged)
    read = read_artifact(tmp_path / "all.h5")
    np.testing.assert_array_equal(read.noisy_sums, merged.noisy_sums)
    np.testing.assert_array_equal(read.noisy_counts, merged.noisy_counts)
    assert (read.classes, read.feature_map, read.ledger) == (merged.classes, merged.feature_map, merged.ledger)


def test_a_part_that_its_audit_would_reject_makes_no_merged_file(tmp_path: Path) -> None:
    forged = other_ledger(epsilon=0.5)(example_artifact())
    with pytest.raises(InconsistentArtifactError, match="release 2: epsilon"):
        write_artifact(tmp_path / "all.h5", merge_artifacts([("a", example_artifact()), ("b", forged)]))
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_single_release_is_still_of_version_1_and_a_merged_one_of_version_2(tmp_path: Path) -> None:
    parts = example_parts("a", "b")
    write_artifact(tmp_path / "a.h5", parts[0][1])
    write_artifact(tmp_path / "all.h5", merge_artifacts(parts))
    stored = {}
    for name in ("a", "all"):
        with h5py.File(tmp_path / f"{name}.h5") as file:
            stored[name] = json.loads(file["ledger"][()])
    assert stored["a"]["schema_version"] == 1 and "releases" not in stored["a"]
    assert stored["all"].keys() == {"schema_version", "noise_sigma", "releases"}
    assert stored["all"]["schema_version"] == 2
    assert stored["all"]["releases"] == [artifact.ledger.to_dict() for _, artifact in parts]


def test_a_reader_of_single_ledgers_says_that_a_merged_one_is_of_a_later_version() -> None:
    ledger = merge_artifacts(example_parts("a", "b")).ledger
    with pytest.raises(UnsupportedVersionError, match="version is 2; this program reads version 1"):
        Ledger.from_dict(ledger.to_dict())


def merged_fields(**changes: Any) -> dict[str, Any]:
    fields = merge_ledgers((example_ledger(), example_ledger())).to_dict()
    return {name: value for name, value in (fields | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"schema_version": 3}, UnsupportedVersionError, "version is 3; this program reads version 2"),
        ({"schema_version": 1}, UnsupportedVersionError, "version is 1; this program reads version 2"),
        ({"schema_version": 2.0}, UnsupportedVersionError, r"version is 2\.0"),
        ({"schema_version": None}, UnsupportedVersionError, "version is None"),
        ({"noise_sigma": None}, LedgerError, "'noise_sigma' of a merged ledger is missing"),
        ({"epsilon": 0.1}, LedgerError, "'epsilon' of a merged ledger is not known"),
        ({"noise_sigma": 0.0}, LedgerError, r"noise_sigma is 0\.0"),
        ({"noise_sigma": math.inf}, LedgerError, "noise_sigma is inf"),
        ({"noise_sigma": 3}, LedgerError, "noise_sigma is 3"),
        ({"noise_sigma": "3.0"}, LedgerError, "noise_sigma is '3.0'"),
        ({"releases": {}}, LedgerError, "releases is {}; allowed is a list"),
        ({"releases": "two"}, LedgerError, "releases is 'two'; allowed is a list"),
        ({"releases": []}, LedgerError, r"0 release\(s\) merged; allowed are 2 to 32"),
        ({"releases": [example_ledger().to_dict()]}, LedgerError, r"1 release\(s\) merged"),
        ({"releases": [None] * 33}, LedgerError, r"33 release\(s\) merged"),
        ({"releases": [example_ledger().to_dict(), 7]}, LedgerError, "release 2: ledger: expected a JSON object"),
        (
            {"releases": [example_ledger().to_dict(), example_ledger().to_dict() | {"sigma": -1.0}]},
            LedgerError,
            "release 2: ledger: sigma is",
        ),
        ({"releases": [merged_fields()] * 2}, UnsupportedVersionError, "release 1: ledger: the schema version is 2"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_malformed_merged_ledger_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        read_ledger(merged_fields(**changes))


def test_json_gives_the_same_merged_ledger_back() -> None:
    ledger = merge_artifacts(example_parts("a", "b", "c")).ledger
    assert read_ledger(json.loads(json.dumps(ledger.to_dict()))) == ledger
    single = example_ledger()
    assert read_ledger(json.loads(json.dumps(single.to_dict()))) == single


@pytest.mark.parametrize("name", COMMON)
def test_a_ledger_of_releases_that_do_not_belong_together_is_refused(name: str) -> None:
    changed = {"relation": REPLACE, "unit_of_privacy": "one person", "non_negative_features": False}.get(name, 17)
    releases = (example_ledger(), example_ledger(), dataclasses.replace(example_ledger(), **{name: changed}))
    assert mismatch(releases[0], releases[1]) is None
    with pytest.raises(LedgerError, match=rf"release 3 cannot have been merged with release 1: its {COMMON[name]} is"):
        merge_ledgers(releases)


def test_a_merged_ledger_has_no_sigma_to_mistake_for_that_of_a_release() -> None:
    names = {field.name for field in dataclasses.fields(MergedLedger)} | set(dir(MergedLedger))
    assert not names & {"sigma", "noise_multiplier", "opacus_state", "sensitivity", "sensitivity_squared"}
