"""`release`: one mechanism, once, with parameters that the artifact states; nothing else leaves."""

import contextlib
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dpmepf.artifacts.accounting import discrete_gaussian_delta
from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.claims import check_claims
from dpmepf.artifacts.errors import OversizeError, RegisterBudgetError
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed import release as release_module
from dpmepf.embed.noise import NoiseError
from dpmepf.embed.release import coarsen, mechanism_input, release
from dpmepf.embed.summing import ClassSums, ExactSums, SummingError
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map_description import FeatureMapDescription

CLASSES, DIMENSION = ("cat", "dog", "owl"), 500

FEATURE_MAP = FeatureMapDescription(
    preset="default",
    encoder="builtin",
    weights_sha256="0" * 64,
    layers=("stage1.2",),
    pooling=(4,),
    normalisation="per-layer",
    moments=(1,),
    layer_weights=(1.0,),
    resolution=32,
    channels=3,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.25, 0.25, 0.25),
)


def sums_of(records: int, *, non_negative: bool = True) -> ClassSums:
    generator = np.random.default_rng(0)
    features = np.abs(generator.standard_normal((records, DIMENSION)).astype(np.float32))
    sums = ClassSums(class_count=len(CLASSES), dimension=DIMENSION, non_negative=non_negative)
    if records:
        sums.add(features / np.linalg.norm(features, axis=1, keepdims=True), generator.integers(0, 3, records))
    return sums


def released(
    sums: ClassSums,
    *,
    epsilon: float = 2.0,
    relation: str = "add-or-remove-one",
    charge: Callable[[Ledger], None] | None = None,
) -> Artifact:
    return release(
        sums,
        classes=CLASSES,
        feature_map=FEATURE_MAP,
        epsilon=epsilon,
        delta=1e-5,
        relation=NeighbouringRelation(relation),
        inferred_schema=("channels",),
        dataset_name="animals",
        charge=charge,
    )


def test_more_numbers_than_an_artifact_holds_are_refused_before_a_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = sums_of(20)
    with monkeypatch.context() as small:
        small.setattr("dpmepf.artifacts.artifact.LARGEST_SIZE", len(CLASSES) * DIMENSION - 1)
        with pytest.raises(OversizeError, match="3 classes x 500 features"):
            released(sums, charge=pytest.fail)
    assert released(sums).noisy_sums.shape == (3, 500)


@pytest.mark.parametrize("relation", ["add-or-remove-one", "replace-one"])
@pytest.mark.parametrize("non_negative", [True, False])
def test_the_artifact_states_parameters_that_meet_the_claim(relation: str, non_negative: bool) -> None:
    artifact = released(sums_of(20, non_negative=non_negative), relation=relation)
    ledger = artifact.ledger
    assert all(check.holds for check in check_claims(artifact))
    multiplier = {("add-or-remove-one", True): 1, ("add-or-remove-one", False): 1, ("replace-one", True): 2}
    record = 4**ledger.lattice_exponent + ledger.count_weight_lattice**2
    assert ledger.sensitivity_squared == multiplier.get((relation, non_negative), 4) * record
    parameters = {"sensitivity": ledger.sensitivity, "sigma": ledger.sigma, "coordinates": 3 * 501}
    assert discrete_gaussian_delta(2.0, **parameters) <= 1e-5
    assert (ledger.dataset_name, ledger.inferred_schema) == ("animals", ("channels",))


def test_the_noise_in_the_artifact_has_the_sigma_of_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,503 coordinates: σ estimated within 12 % with false alarm below 1e-10; σ of half or double is noticed."""
    exact = sums_of(50).take()
    artifact = released(sums_of(50))
    scale = 2.0**artifact.ledger.lattice_exponent
    noise = (artifact.feature_sums() - exact.features / scale) / artifact.noise_std_features
    count_noise = (
        artifact.counts() - exact.weighted_counts / artifact.ledger.count_weight_lattice
    ) / artifact.noise_std_counts
    together = np.concatenate([noise.ravel(), count_noise])
    assert 0.88 < together.std() < 1.12
    assert abs(together.mean()) < 7 / np.sqrt(len(together))  # 7σ: 3e-12
    assert np.abs(count_noise).max() < 8  # 8σ: 4e-15


def test_two_releases_of_the_same_data_differ_in_practically_every_value_whatever_is_seeded() -> None:
    """Stored steps of σ/16 to σ/32 agree by chance with probability below 1/56 each; a fixed seed makes it 1."""
    artifacts = []
    for _ in range(2):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        artifacts.append(released(sums_of(20)))
    first, second = artifacts
    assert np.mean(first.noisy_sums == second.noisy_sums) < 0.1  # expected below 0.018; 1,500 values: far below 1e-30
    assert first.ledger.release_id != second.ledger.release_id


def test_the_same_sums_are_released_once() -> None:
    sums = sums_of(20)
    released(sums)
    with pytest.raises(SummingError, match="released already"):
        released(sums)


@pytest.mark.parametrize("released_before", [False, True])
def test_a_release_is_charged_last_of_all_before_the_noise(
    released_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noise(exact: np.ndarray, **_: object) -> np.ndarray:
        events.append("noise")
        return exact

    monkeypatch.setattr(release_module, "add_discrete_gaussian_noise", noise)
    sums = sums_of(20)
    if released_before:
        sums.take()
    with pytest.raises(SummingError) if released_before else contextlib.nullcontext():
        release(
            sums,
            classes=CLASSES,
            feature_map=FEATURE_MAP,
            epsilon=1.0,
            delta=1e-5,
            relation=NeighbouringRelation("replace-one"),
            charge=lambda ledger: events.append(f"charge {ledger.epsilon:g}"),
        )
    assert events == ([] if released_before else ["charge 1", "noise"])


def test_a_release_that_is_not_charged_draws_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RegisterBudgetError("over budget")

    def noise(*_: object, **__: object) -> None:
        raise AssertionError("noise was drawn")

    monkeypatch.setattr(release_module, "add_discrete_gaussian_noise", noise)
    relation = NeighbouringRelation("replace-one")
    with pytest.raises(RegisterBudgetError):
        release(
            sums_of(20),
            classes=CLASSES,
            feature_map=FEATURE_MAP,
            epsilon=1.0,
            delta=1e-5,
            relation=relation,
            charge=refuse,
        )


def test_parameters_that_cannot_be_met_leave_the_sums_for_another_try() -> None:
    sums = sums_of(20)
    with pytest.raises(UsageError):
        released(sums, epsilon=-1.0)
    assert released(sums).dimension == DIMENSION


def test_failing_noise_releases_nothing_and_ends_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entropy(*_: object, **__: object) -> np.ndarray:
        raise NoiseError("no entropy")

    sums = sums_of(20)
    monkeypatch.setattr(release_module, "add_discrete_gaussian_noise", no_entropy)
    with pytest.raises(NoiseError):
        released(sums)
    monkeypatch.undo()
    with pytest.raises(SummingError, match="released already"):
        released(sums)


def test_an_empty_data_set_releases_pure_noise() -> None:
    artifact = released(sums_of(0))
    assert np.abs(artifact.counts() / artifact.noise_std_counts).max() < 8  # 8σ: 4e-15
    assert np.count_nonzero(artifact.noisy_sums) > DIMENSION


def test_features_and_counts_go_through_a_single_mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = release_module.add_discrete_gaussian_noise, []

    def spy(values: np.ndarray, **parameters: object) -> np.ndarray:
        calls.append((len(values), parameters["sigma"]))
        return real(values, **parameters)  # type: ignore[arg-type]

    monkeypatch.setattr(release_module, "add_discrete_gaussian_noise", spy)
    artifact = released(sums_of(5))
    assert calls == [(3 * DIMENSION + 3, artifact.ledger.sigma)]


def test_class_names_must_fit_the_sums() -> None:
    sums = ClassSums(class_count=2, dimension=DIMENSION, non_negative=True)
    with pytest.raises(SummingError, match="do not fit"):
        released(sums)


def test_features_come_first_and_then_the_weighted_counts() -> None:
    sums = ExactSums(features=np.array([[1, 2], [3, 4]]), weighted_counts=np.array([50, 60]))
    assert mechanism_input(sums).tolist() == [1, 2, 3, 4, 50, 60]


def test_the_ledger_names_the_unit_that_the_sums_were_bounded_for() -> None:
    by_person = ClassSums(class_count=3, dimension=DIMENSION, non_negative=True, unit_of_privacy="one person")
    assert released(by_person).ledger.unit_of_privacy == "one person"
    assert released(sums_of(5)).ledger.unit_of_privacy == "one image"


def test_coarsening_rounds_to_the_nearest_multiple_even_at_the_ends_of_int64() -> None:
    values = np.array([0, 3, 4, 11, 12, -3, -4, -5, -12, 2**63 - 1, -(2**63)], dtype=np.int64)
    expected = [(int(value) + 4) // 8 for value in values]
    assert coarsen(values, exponent=3).tolist() == expected
    assert coarsen(values, exponent=0).tolist() == values.tolist()
