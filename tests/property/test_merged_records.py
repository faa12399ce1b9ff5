"""Parallel composition: parts of a data set add up to it exactly, and a record moves the part that it is in alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_neighbouring_datasets import ADD_OR_REMOVE, REPLACE, Record, coordinates, stated, vector

Drawn = tuple[list[list[Record]], Record, int]


@st.composite
def parts(draw: st.DrawFn) -> Drawn:
    """The records of two to four parts, one record more, and the dimension."""
    dimension = draw(st.integers(1, 5))
    record = st.tuples(st.tuples(*[coordinates()] * dimension), st.integers(0, 2))
    return draw(st.lists(st.lists(record, max_size=4), min_size=2, max_size=4)), draw(record), dimension


def vectors(data: Sequence[Sequence[Record]], dimension: int, *, non_negative: bool) -> list[list[int]]:
    return [vector(records, dimension, non_negative=non_negative) for records in data]


def squared_distances(one: list[list[int]], other: list[list[int]]) -> list[int]:
    """How far each part moved."""
    return [
        sum((a - b) ** 2 for a, b in zip(before, after, strict=True)) for before, after in zip(one, other, strict=True)
    ]


@given(parts(), st.booleans())
@settings(max_examples=200)
def test_the_sum_of_the_parts_is_what_the_mechanism_would_noise_for_all_records_together(
    drawn: Drawn, non_negative: bool
) -> None:
    data, _, dimension = drawn
    union = [record for records in data for record in records]
    total = np.sum(vectors(data, dimension, non_negative=non_negative), axis=0)
    assert total.tolist() == vector(union, dimension, non_negative=non_negative)


@given(parts(), st.booleans(), st.data())
@settings(max_examples=200)
def test_adding_a_record_moves_its_part_by_at_most_lambda_and_no_other(
    drawn: Drawn, non_negative: bool, choice: st.DataObject
) -> None:
    data, record, dimension = drawn
    part = choice.draw(st.integers(0, len(data) - 1))
    neighbour = [[*records, record] if number == part else records for number, records in enumerate(data)]
    moved = squared_distances(*(vectors(sets, dimension, non_negative=non_negative) for sets in (data, neighbour)))
    assert moved.pop(part) <= stated(dimension, ADD_OR_REMOVE, non_negative=non_negative)
    assert not any(moved)


@given(parts(), st.booleans(), st.data())
@settings(max_examples=200)
def test_replacing_a_record_within_its_part_moves_that_part_by_at_most_the_stated_distance_and_no_other(
    drawn: Drawn, non_negative: bool, choice: st.DataObject
) -> None:
    data, record, dimension = drawn
    part = choice.draw(st.integers(0, len(data) - 1))
    other = choice.draw(st.tuples(st.tuples(*[coordinates()] * dimension), st.integers(0, 2)))
    first, second = (
        [[*records, end] if number == part else records for number, records in enumerate(data)]
        for end in (record, other)
    )
    moved = squared_distances(*(vectors(sets, dimension, non_negative=non_negative) for sets in (first, second)))
    assert moved.pop(part) <= stated(dimension, REPLACE, non_negative=non_negative)
    assert not any(moved)


def test_a_record_in_two_parts_moves_both_which_the_merged_claim_does_not_cover() -> None:
    """What --disjoint rules out: the check above is shown to notice it."""
    record: Record = ((1.0, 0.0), 0)
    before, after = (vectors(data, 2, non_negative=True) for data in ([[], []], [[record], [record]]))
    assert squared_distances(before, after) == [stated(2, ADD_OR_REMOVE, non_negative=True)] * 2
