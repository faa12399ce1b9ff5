"""`bound_records`: every row ends on the lattice with norm at most 1, in exact integers, and knows no other row."""

import math
import time

import numpy as np
import pytest

from dpmepf.artifacts.sensitivity import lattice_exponent
from dpmepf.embed.bounding import BoundingError, bound_records

DIMENSION = 15360
EXPONENT = lattice_exponent(DIMENSION)


def bound(features: np.ndarray, *, exponent: int = EXPONENT, non_negative: bool = False) -> np.ndarray:
    return bound_records(features, lattice_exponent=exponent, non_negative=non_negative)


def squared_norms(rows: np.ndarray) -> list[int]:
    return [sum(value * value for value in row) for row in rows.tolist()]  # Python integers cannot overflow


def normalised(count: int, dimension: int = DIMENSION, dtype: type = np.float32) -> np.ndarray:
    features = np.random.default_rng(3).standard_normal((count, dimension)).astype(dtype)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_normalised_row_is_truncated_towards_zero_and_otherwise_untouched(dtype: type) -> None:
    features = (0.9 * normalised(5, dtype=np.float32)).astype(dtype)
    expected = [[math.trunc(float(value) * 2**EXPONENT) for value in row] for row in features]
    assert bound(features).tolist() == expected


@pytest.mark.parametrize("length", [1.0, 1.0 + 1e-7, 1.01, 3.0, 1e4, 1e30])
def test_no_row_is_longer_than_one_and_a_long_row_keeps_its_direction_and_norm_one(length: float) -> None:
    features = (normalised(4).astype(np.float64) * length).astype(np.float32)
    rows = bound(features)
    for row, squared, original in zip(rows, squared_norms(rows), features.astype(np.float64), strict=True):
        assert squared <= 4**EXPONENT
        assert squared > 0.9999 * 4**EXPONENT
        assert np.allclose(row / 2**EXPONENT, original / np.linalg.norm(original), atol=2 / 2**EXPONENT)


def test_a_one_hot_row_keeps_norm_exactly_one() -> None:
    features = np.zeros((1, DIMENSION), dtype=np.float32)
    features[0, 7] = 1.0
    assert squared_norms(bound(features)) == [4**EXPONENT]


def test_one_lattice_unit_beyond_the_bound_is_shortened() -> None:
    features = np.zeros((1, 2), dtype=np.float64)
    features[0] = 1.0, 1 / 2**26
    assert squared_norms(np.trunc(features * 2**26).astype(np.int64)) == [4**26 + 1]
    assert squared_norms(bound(features, exponent=26))[0] <= 4**26


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_contributes_nothing(value: float) -> None:
    features = normalised(3)
    features[1, 5] = value
    rows = bound(features)
    assert not rows[1].any()
    assert rows[0].any() and rows[2].any()


@pytest.mark.parametrize("value", [5e-324, 1e-310, -1e-40])
def test_denormals_become_zero(value: float) -> None:
    assert not bound(np.full((2, 3), value, dtype=np.float64), exponent=26).any()


def test_the_largest_floats_are_bounded_as_well() -> None:
    features = np.full((2, 5), np.finfo(np.float64).max)
    features[1] = 0.0, 0.0, -np.finfo(np.float64).max, 0.0, 0.0
    rows = bound(features, exponent=26)
    assert all(0.999 * 4**26 < squared <= 4**26 for squared in squared_norms(rows))
    assert rows[1, 2] < 0


def test_non_negative_features_have_no_negative_coordinate_left() -> None:
    rows = bound(np.concatenate([normalised(3), 1e6 * normalised(2)]), non_negative=True)
    assert rows.min() == 0
    assert all(0 < squared <= 4**EXPONENT for squared in squared_norms(rows))


@pytest.mark.parametrize("place", [(0, 0), (2, 3), (4, 6)])
def test_a_single_negative_coordinate_is_raised_wherever_it_is(place: tuple[int, int]) -> None:
    features = np.full((5, 7), 0.25)
    features[place] = -1.5 / 2**20  # one lattice unit below zero
    rows = bound(features, exponent=20, non_negative=True)
    assert rows[place] == 0
    assert (np.delete(rows.ravel(), place[0] * 7 + place[1]) == 2**18).all()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    features = normalised(40)
    features[3] *= 1e9
    features[11, 2] = math.nan
    features[17] *= 1 + 1e-6
    together = bound(features)
    order = np.random.default_rng(0).permutation(len(features))
    assert np.array_equal(bound(features[order]), together[order])
    assert all(np.array_equal(bound(features[i : i + 1])[0], together[i]) for i in range(len(features)))


def test_the_callers_features_are_left_alone() -> None:
    features = normalised(3) * 5
    copy = features.copy()
    bound(features, non_negative=True)
    assert np.array_equal(features, copy)


def test_no_record_gives_no_row() -> None:
    assert bound(np.zeros((0, 12), dtype=np.float32), exponent=26).shape == (0, 12)


@pytest.mark.parametrize(
    ("features", "exponent"),
    [
        (np.zeros((2, 3), dtype=np.int64), 26),
        (np.zeros((2, 3), dtype=np.longdouble), 26),
        (np.zeros(3), 26),
        (np.zeros((3, 0)), 26),
        (np.zeros((2, 3)), 15),
        (np.zeros((2, 3)), 27),
        (np.zeros((2, DIMENSION)), EXPONENT + 1),
    ],
)
def test_features_or_lattices_that_the_proof_does_not_cover_are_refused(features: np.ndarray, exponent: int) -> None:
    with pytest.raises(BoundingError):
        bound(features, exponent=exponent)


def test_the_final_integer_check_catches_a_screen_that_lets_long_rows_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: the float screen sees every norm as 0. The integer check must still refuse."""
    real_einsum = np.einsum

    def blind(subscripts: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.zeros(len(left)) if left.dtype == np.float64 else real_einsum(subscripts, left, right)

    monkeypatch.setattr(np, "einsum", blind)
    with pytest.raises(BoundingError, match="nothing was released"):
        bound(np.full((2, 8), 0.9), exponent=26)


def test_bounding_a_batch_takes_a_small_part_of_the_encoders_time() -> None:
    """The encoder needs about 320 ms for 256 images; bounding takes about 15 of its thread's own time."""
    features = np.maximum(normalised(256), 0)
    times = []
    for _ in range(5):
        start = time.thread_time()
        bound(features, non_negative=True)
        times.append(time.thread_time() - start)
    assert min(times) < 0.1


def test_long_rows_of_two_dimensions_are_shortened_too() -> None:
    """Where truncating coordinates takes next to nothing away, the norm that they are divided by is rounded up."""
    features = 3 * normalised(2_000, dimension=2).astype(np.float64)
    assert max(squared_norms(bound(features, exponent=26))) <= 4**26
