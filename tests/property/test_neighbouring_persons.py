"""Where the unit of privacy is one person: all that a person's images move the noised integers is at most the stated
sensitivity, exactly, whatever they are and however many. The check is also shown to fail on planted bugs.
"""

import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.sensitivity import count_weight_lattice, lattice_exponent, sensitivity_squared
from dpmepf.embed import summing
from dpmepf.embed.bounding import BoundingError, clip_contribution
from dpmepf.embed.release import mechanism_input
from dpmepf.embed.summing import ClassSums, SummingError

ADD_OR_REMOVE, REPLACE = NeighbouringRelation.ADD_OR_REMOVE_ONE, NeighbouringRelation.REPLACE_ONE
CLASSES, DIMENSION = 3, 5

Person = tuple[np.ndarray, np.ndarray]  # features of their images, labels


def noised(persons: list[Person], *, non_negative: bool, batch_size: int = 4) -> np.ndarray:
    """What the mechanism noises for these persons, as Python integers."""
    sums = ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=non_negative, unit_of_privacy="one person")
    features = np.concatenate([person[0] for person in persons] or [np.zeros((0, DIMENSION))])
    labels = np.concatenate([person[1] for person in persons] or [np.zeros(0, dtype=np.int64)])
    owners = np.repeat(np.arange(len(persons)), [len(person[1]) for person in persons])
    for start in range(0, len(labels), batch_size):
        batch = slice(start, start + batch_size)
        sums.add(features[batch], labels[batch], owners[batch])
    return mechanism_input(sums.take()).astype(object)


def squared_distance(one: list[Person], other: list[Person], *, non_negative: bool) -> int:
    difference = noised(one, non_negative=non_negative) - noised(other, non_negative=non_negative)
    return int(np.dot(difference, difference))


def stated(relation: NeighbouringRelation, *, non_negative: bool) -> int:
    exponent = lattice_exponent(DIMENSION)
    weight = count_weight_lattice(exponent)
    return sensitivity_squared(exponent, weight, relation, non_negative_features=non_negative)


@st.composite
def a_person(draw: st.DrawFn) -> Person:
    value = st.sampled_from((0.0, 1.0, -1.0, 1e30, math.nan, 1 / math.sqrt(DIMENSION))) | st.floats(-2, 2)
    image = st.tuples(st.lists(value, min_size=DIMENSION, max_size=DIMENSION), st.integers(0, CLASSES - 1))
    images = draw(st.lists(image, min_size=1, max_size=6))
    return np.array([features for features, _ in images]), np.array([label for _, label in images])


@given(st.lists(a_person(), max_size=3), a_person(), a_person(), st.booleans())
@settings(max_examples=300)
def test_one_person_moves_the_sum_by_at_most_the_stated_sensitivity(
    others: list[Person], person: Person, replacement: Person, non_negative: bool
) -> None:
    added = squared_distance(others, [*others, person], non_negative=non_negative)
    assert added <= stated(ADD_OR_REMOVE, non_negative=non_negative)
    replaced = squared_distance([person, *others], [replacement, *others], non_negative=non_negative)
    assert replaced <= stated(REPLACE, non_negative=non_negative)


def person_of(images: int, kind: str, seed: int = 0) -> Person:
    """A person whose images push the same way, spread over the classes, or are arbitrary."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % CLASSES
    features = generator.standard_normal((images, DIMENSION))
    if kind == "one way":
        features[...], labels[...] = np.eye(DIMENSION)[0], 0
    elif kind == "all coordinates":
        features[...] = 1.0
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


KINDS = ("one way", "all coordinates", "arbitrary")


def largest_excess(images: int, *, non_negative: bool = True) -> int:
    """Largest squared distance less the stated one, over the kinds above; a guarantee keeps it <= 0."""
    others = [person_of(5, "arbitrary", seed=1), person_of(1, "one way")]
    persons = [person_of(images, kind) for kind in KINDS]
    removed = [squared_distance([*others, person], others, non_negative=non_negative) for person in persons]
    replaced = [
        squared_distance([*others, one], [*others, two], non_negative=non_negative)
        for one, two in itertools.permutations(persons, 2)
    ]
    return max(
        max(removed) - stated(ADD_OR_REMOVE, non_negative=non_negative),
        max(replaced) - stated(REPLACE, non_negative=non_negative),
    )


@pytest.mark.parametrize("non_negative", [True, False])
@pytest.mark.parametrize("images", [1, 2, 100, 3000])
def test_removing_or_replacing_a_person_with_many_images_keeps_to_it(images: int, non_negative: bool) -> None:
    assert largest_excess(images, non_negative=non_negative) <= 0


def test_the_bound_is_reached_so_that_no_noise_is_wasted() -> None:
    """Lost are the truncation of Λ and of at most each coordinate: 16 lattice steps of 2^26."""
    moved = squared_distance([person_of(100, "one way")], [], non_negative=True)
    bound = stated(ADD_OR_REMOVE, non_negative=True)
    assert (math.isqrt(bound) - 16) ** 2 <= moved <= bound


def test_clipping_keeps_the_direction_and_what_is_within_the_bound() -> None:
    within = np.array([[3, -4], [0, 0]])
    assert clip_contribution(within, squared_bound=25) is within
    assert clip_contribution(10 * within, squared_bound=25).tolist() == [[3, -4], [0, 0]]
    assert clip_contribution(10 * within, squared_bound=24).tolist() == [[2, -3], [0, 0]]
    assert clip_contribution(np.array([[2, 2]]), squared_bound=7).tolist() == [[1, 1]]  # norms 2.8 and 2.6


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_integers_that_leave_int64_when_squared_are_clipped_exactly(size: int) -> None:
    for value in (2**62 - 1, -(2**63)):
        long = np.full((2, size), value)
        clipped = clip_contribution(long, squared_bound=2**52 + 1).ravel().tolist()
        assert 0 < sum(value * value for value in clipped) <= 2**52 + 1
        assert len(set(clipped)) == 1
        assert (clipped[0] > 0) == (value > 0)


def test_a_norm_beyond_int64_divides_small_integers_too() -> None:
    assert clip_contribution(np.array([[1], [-(2**63)]]), squared_bound=25).tolist() == [[0], [-4]]


@pytest.mark.parametrize("contribution", [np.zeros(3, np.int64), np.zeros((1, 3), np.int32), np.zeros((1, 3))])
def test_only_a_matrix_of_int64_is_clipped(contribution: np.ndarray) -> None:
    with pytest.raises(BoundingError, match="matrix of int64"):
        clip_contribution(contribution, squared_bound=25)


def test_clipping_a_person_of_many_classes_and_images_takes_little_more_memory_than_their_sums() -> None:
    """Python's integers take ten times the room of int64: they are used for one class at a time."""
    contribution = np.full((60, 20_000), 2**40)
    tracemalloc.start()
    clip_contribution(contribution, squared_bound=2**52)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * contribution.nbytes


# Planted bugs: each replaces a step of the summing by person, and the check above must notice.


def rounds_the_norm_down(contribution: np.ndarray, *, squared_bound: int) -> np.ndarray:
    exact = contribution.astype(object)
    norm = math.isqrt(int(np.dot(exact.ravel(), exact.ravel())))
    bound = math.isqrt(squared_bound) + 1
    return contribution if norm <= bound else -(-exact * bound // norm).astype(np.int64)


def clips_in_float(contribution: np.ndarray, *, squared_bound: int) -> np.ndarray:
    factor = min(1.0, math.sqrt(squared_bound) / np.linalg.norm(contribution.astype(np.float32)))
    return np.rint(contribution * np.float32(factor)).astype(np.int64)


def clips_each_class(contribution: np.ndarray, *, squared_bound: int) -> np.ndarray:
    return np.concatenate([clip_contribution(row[None], squared_bound=squared_bound) for row in contribution])


def leaves_the_counts(contribution: np.ndarray, *, squared_bound: int) -> np.ndarray:
    clipped = clip_contribution(contribution, squared_bound=squared_bound)
    clipped[:, -1] = contribution[:, -1]
    return clipped


def does_not_clip(contribution: np.ndarray, *, squared_bound: int) -> np.ndarray:
    return contribution


@pytest.mark.parametrize(
    "bug", [rounds_the_norm_down, clips_in_float, clips_each_class, leaves_the_counts, does_not_clip]
)
def test_the_check_catches_planted_bugs(bug: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "clip_contribution", bug)
    assert largest_excess(100) > 0


def test_clipping_at_every_batch_is_noticed_by_the_sums_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who was finished and comes again would count twice."""
    real = ClassSums.add

    def add(sums: ClassSums, *arguments: np.ndarray) -> None:
        real(sums, *arguments)
        assert sums._totals is not None
        sums._finish_person(sums._totals)

    monkeypatch.setattr(ClassSums, "add", add)
    with pytest.raises(SummingError, match="in a row"):
        largest_excess(100)


def test_the_final_check_refuses_a_result_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    real = math.isqrt
    monkeypatch.setattr(math, "isqrt", lambda value: real(value) + 2)
    with pytest.raises(BoundingError, match="defect"):
        clip_contribution(np.array([[10**6]]), squared_bound=25)
