"""Neighbouring data sets: the integers that are noised differ by at most the stated sensitivity, exactly.

The check below is the one the guarantee rests on, so it is also shown to fail on planted bugs in bounding and summing.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.sensitivity import count_weight_lattice, lattice_exponent, sensitivity_squared
from dpmepf.embed import summing
from dpmepf.embed.release import mechanism_input
from dpmepf.embed.summing import ClassSums

ADD_OR_REMOVE, REPLACE = NeighbouringRelation.ADD_OR_REMOVE_ONE, NeighbouringRelation.REPLACE_ONE
CLASSES = 3

Record = tuple[tuple[float, ...], int]  # features, label

NASTY = (0.0, -0.0, 1.0, -1.0, 1 + 2**-23, 0.5, 1e-30, 5e-324, 1e30, -1e30, 1.7e308, math.nan, math.inf, -math.inf)


def vector(records: Sequence[Record], dimension: int, *, non_negative: bool) -> list[int]:
    """What the mechanism noises for this data set, as Python integers."""
    sums = ClassSums(class_count=CLASSES, dimension=dimension, non_negative=non_negative)
    for features, label in records:
        sums.add(np.array([features], dtype=np.float64), np.array([label]))
    return mechanism_input(sums.take()).tolist()


def squared_distance(first: Sequence[Record], second: Sequence[Record], dimension: int, *, non_negative: bool) -> int:
    one, other = (vector(records, dimension, non_negative=non_negative) for records in (first, second))
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def stated(dimension: int, relation: NeighbouringRelation, *, non_negative: bool) -> int:
    exponent = lattice_exponent(dimension)
    weight = count_weight_lattice(exponent)
    return sensitivity_squared(exponent, weight, relation, non_negative_features=non_negative)


def coordinates() -> st.SearchStrategy[float]:
    return st.sampled_from(NASTY) | st.floats(-2, 2) | st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[list[Record], Record, Record, int]:
    """Shared records, a record, its replacement, and the dimension."""
    dimension = draw(st.integers(1, 6))
    record = st.tuples(st.tuples(*[coordinates()] * dimension), st.integers(0, CLASSES - 1))
    return draw(st.lists(record, max_size=4)), draw(record), draw(record), dimension


@given(neighbours(), st.booleans())
@settings(max_examples=300)
def test_adding_or_removing_one_record_moves_the_sum_by_at_most_lambda(
    drawn: tuple[list[Record], Record, Record, int], non_negative: bool
) -> None:
    shared, record, _, dimension = drawn
    distance = squared_distance(shared, [*shared, record], dimension, non_negative=non_negative)
    assert distance <= stated(dimension, ADD_OR_REMOVE, non_negative=non_negative)


@given(neighbours(), st.booleans())
@settings(max_examples=300)
def test_replacing_one_record_moves_the_sum_by_at_most_two_lambda_or_sqrt2_lambda_if_non_negative(
    drawn: tuple[list[Record], Record, Record, int], non_negative: bool
) -> None:
    shared, record, other, dimension = drawn
    distance = squared_distance([*shared, record], [*shared, other], dimension, non_negative=non_negative)
    assert distance <= stated(dimension, REPLACE, non_negative=non_negative)


def worst_records(dimension: int) -> list[Record]:
    """One-hot features of both signs, the zero image, what a broken encoder returns, and lengths next to 1."""
    generator = np.random.default_rng(5)
    directions = generator.standard_normal((6, dimension))
    unit, *others = (
        (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    )
    first, last = np.zeros(dimension), np.zeros(dimension)
    first[0] = last[-1] = 1.0
    many_small = np.full(dimension, (1 + 1e-6) / math.sqrt(dimension))
    beyond = 0.5 * 2.0 ** -lattice_exponent(dimension)  # half a lattice step
    features = [
        first,
        last,
        -first,
        np.zeros(dimension),
        unit,
        -unit,
        *np.abs([unit, *others]),
        unit * (1 + 1e-7),
        unit * (1 + 1e-3),
        many_small,
        many_small + beyond,
        first + beyond,
        first * 1e30,
        unit * 1e30,
        -many_small * 1e300,
        np.full(dimension, math.nan),
        np.full(dimension, math.inf),
        np.full(dimension, 5e-324),
    ]
    return [(tuple(vector.tolist()), label) for vector in features for label in (0, 1)]


def largest_excess(dimension: int, relation: NeighbouringRelation, *, non_negative: bool) -> int:
    """Largest squared distance less the stated one, over all pairs of worst records; a guarantee keeps it <= 0."""
    worst = worst_records(dimension)
    vectors = [vector([record], dimension, non_negative=non_negative) for record in worst]
    if relation is ADD_OR_REMOVE:
        distances = [sum(a * a for a in one) for one in vectors]
    else:
        distances = [
            sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) for one, two in itertools.combinations(vectors, 2)
        ]
    return max(distances) - stated(dimension, relation, non_negative=non_negative)


CASES = list(itertools.product((1, 2, 5, 40), (ADD_OR_REMOVE, REPLACE), (False, True)))


@pytest.mark.parametrize(("dimension", "relation", "non_negative"), CASES)
def test_no_pair_of_worst_records_exceeds_the_stated_sensitivity(
    dimension: int, relation: NeighbouringRelation, non_negative: bool
) -> None:
    assert largest_excess(dimension, relation, non_negative=non_negative) <= 0


def test_the_default_dimension_holds_it_too() -> None:
    for non_negative in (False, True):
        assert largest_excess(15360, ADD_OR_REMOVE, non_negative=non_negative) <= 0


def test_the_stated_sensitivities_are_reached_and_so_not_wasteful() -> None:
    one_hot: list[Record] = [((1.0, 0.0), 0), ((0.0, 1.0), 1)]
    assert squared_distance([], one_hot[:1], 2, non_negative=True) == stated(2, ADD_OR_REMOVE, non_negative=True)
    distance = squared_distance(one_hot[:1], one_hot[1:], 2, non_negative=True)
    assert distance == stated(2, REPLACE, non_negative=True)
    opposite: list[Record] = [((1.0, 0.0), 0), ((-1.0, 0.0), 0)]
    without_count = 4 * 4 ** lattice_exponent(2)  # two records of one class have the same count, which does not move
    assert squared_distance(opposite[:1], opposite[1:], 2, non_negative=False) == without_count
    assert without_count <= stated(2, REPLACE, non_negative=False) < 1.011 * without_count


def test_an_empty_data_set_and_its_neighbour() -> None:
    record: Record = ((0.6, 0.8), 2)
    assert squared_distance([], [], 2, non_negative=True) == 0
    assert 0 < squared_distance([], [record], 2, non_negative=True) <= stated(2, ADD_OR_REMOVE, non_negative=True)


# Planted bugs: each replaces the bounding inside the accumulator, and the check above must notice.

Bounding = Callable[..., np.ndarray]


def scaled(features: np.ndarray, exponent: int) -> np.ndarray:
    return np.nan_to_num(features.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0) * 2.0**exponent


def clipped(features: np.ndarray) -> np.ndarray:
    """Float clipping to norm 1, as most code has it."""
    finite = np.nan_to_num(features.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.maximum(np.abs(finite).max(axis=1, keepdims=True), 1.0)
    norms = np.linalg.norm(finite / largest, axis=1, keepdims=True) * largest
    return finite / np.maximum(norms, 1.0)


def rounds_away_from_zero(features: np.ndarray, *, lattice_exponent: int, non_negative: bool) -> np.ndarray:
    lattice = clipped(features) * 2.0**lattice_exponent
    return np.maximum(np.sign(lattice) * np.ceil(np.abs(lattice)), 0 if non_negative else -np.inf).astype(np.int64)


def rounds_to_nearest(features: np.ndarray, *, lattice_exponent: int, non_negative: bool) -> np.ndarray:
    return np.maximum(np.rint(clipped(features) * 2.0**lattice_exponent), 0 if non_negative else -np.inf).astype(
        np.int64
    )


def trusts_the_encoders_norm(features: np.ndarray, *, lattice_exponent: int, non_negative: bool) -> np.ndarray:
    lattice = np.trunc(np.clip(scaled(features, lattice_exponent), -(2.0**30), 2.0**30))
    return np.maximum(lattice, 0 if non_negative else -np.inf).astype(np.int64)


def forgets_to_raise_negatives_to_zero(
    features: np.ndarray, *, lattice_exponent: int, non_negative: bool
) -> np.ndarray:
    return np.trunc(clipped(features) * (2.0**lattice_exponent - 1)).astype(np.int64)


def bounds_the_largest_coordinate_only(
    features: np.ndarray, *, lattice_exponent: int, non_negative: bool
) -> np.ndarray:
    limit = 2.0**lattice_exponent
    return np.trunc(np.clip(scaled(features, lattice_exponent), 0 if non_negative else -limit, limit)).astype(np.int64)


@pytest.mark.parametrize(
    ("bug", "caught_by"),
    [
        (rounds_away_from_zero, ADD_OR_REMOVE),
        (rounds_to_nearest, ADD_OR_REMOVE),
        (trusts_the_encoders_norm, ADD_OR_REMOVE),
        (bounds_the_largest_coordinate_only, ADD_OR_REMOVE),
        (forgets_to_raise_negatives_to_zero, REPLACE),
    ],
)
def test_the_check_catches_planted_bugs(
    bug: Bounding, caught_by: NeighbouringRelation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summing, "bound_records", bug)
    assert largest_excess(40, caught_by, non_negative=True) > 0


def test_the_check_catches_a_record_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "count_weight_lattice", lambda exponent: 2 * count_weight_lattice(exponent))
    assert largest_excess(5, ADD_OR_REMOVE, non_negative=True) > 0
