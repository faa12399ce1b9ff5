"""`ClassSums`: exact, order-free, bounded by itself, handed over once."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dpmepf.artifacts.ledger import ONE_PERSON, UNITS
from dpmepf.artifacts.sensitivity import lattice_exponent
from dpmepf.embed import bounding, summing
from dpmepf.embed.bounding import BoundingError, bound_records
from dpmepf.embed.summing import ClassSums, PartialSums, SummingError

CLASSES, DIMENSION = 4, 37


def records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((count, DIMENSION)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True), generator.integers(0, CLASSES, count)


def new_sums(*, non_negative: bool = False) -> ClassSums:
    return ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=non_negative)


def test_sums_are_the_integer_sums_of_the_bounded_rows() -> None:
    features, labels = records(100)
    features[3] *= 100
    sums = new_sums()
    sums.add(features, labels)
    taken = sums.take()
    rows = bound_records(features, lattice_exponent=lattice_exponent(DIMENSION), non_negative=False)
    for label in range(CLASSES):
        expected = [sum(column) for column in zip(*rows[labels == label].tolist(), strict=True)]
        assert taken.features[label].tolist() == expected
    assert taken.weighted_counts.tolist() == (sums.count_weight * np.bincount(labels, minlength=CLASSES)).tolist()


def test_sums_do_not_depend_on_order_batches_or_workers() -> None:
    features, labels = records(101)
    at_once = new_sums()
    at_once.add(features, labels)
    expected = at_once.take()

    order = np.random.default_rng(1).permutation(len(labels))
    pieces = [new_sums(), new_sums(), new_sums()]
    for position, batch in enumerate(np.array_split(order, 17)):
        pieces[position % 3].add(features[batch], labels[batch])
    pieces[0].merge(pieces[1].hand_over(process=1))
    pieces[0].merge(pieces[2].hand_over(process=2))
    merged = pieces[0].take()
    assert np.array_equal(merged.features, expected.features)
    assert np.array_equal(merged.weighted_counts, expected.weighted_counts)


def test_no_record_leaves_zeros() -> None:
    sums = new_sums()
    sums.add(np.zeros((0, DIMENSION), dtype=np.float32), np.zeros(0, dtype=np.int64))
    taken = sums.take()
    assert not taken.features.any() and not taken.weighted_counts.any()


@pytest.mark.parametrize("label", [-1, CLASSES, 2**40])
def test_a_label_outside_the_declared_classes_is_refused_and_nothing_is_added(label: int) -> None:
    features, _ = records(3)
    sums = new_sums()
    with pytest.raises(SummingError, match="outside 0 to 3"):
        sums.add(features, np.array([0, 1, label]))
    assert not sums.take().weighted_counts.any()


@pytest.mark.parametrize("labels", [np.zeros(2, dtype=np.int64), np.zeros((3, 1), dtype=np.int64), np.zeros(3)])
def test_labels_must_be_one_integer_for_each_record(labels: np.ndarray) -> None:
    with pytest.raises(SummingError, match="labels must be"):
        new_sums().add(records(3)[0], labels)


def test_features_of_another_dimension_are_refused() -> None:
    with pytest.raises(SummingError, match="37 columns"):
        new_sums().add(np.zeros((2, 36), dtype=np.float32), np.zeros(2, dtype=np.int64))


def test_unsigned_labels_are_counted_as_well() -> None:
    features, labels = records(5)
    sums = new_sums()
    sums.add(features, labels.astype(np.uint8))
    assert sums.take().weighted_counts.sum() == 5 * sums.count_weight


@pytest.mark.parametrize("unit", UNITS)
def test_a_mask_hides_no_label_from_the_checks(unit: str) -> None:
    """A hidden label would be None, which stands for every class: one image would be in the sums of all."""
    features = np.zeros((2, DIMENSION), dtype=np.float32)
    features[:, 0] = 1
    persons = np.arange(2) if unit == ONE_PERSON else None
    sums, plain = (
        ClassSums(class_count=3, dimension=DIMENSION, non_negative=True, unit_of_privacy=unit) for _ in range(2)
    )
    sums.add(features, np.ma.array([0, 1], mask=[False, True]), persons)
    plain.add(features, np.array([0, 1]), persons)
    taken, expected = sums.take(), plain.take()
    assert np.array_equal(taken.features, expected.features)
    assert np.array_equal(taken.weighted_counts, expected.weighted_counts)
    with pytest.raises(SummingError, match="outside 0 to 2"):
        ClassSums(class_count=3, dimension=DIMENSION, non_negative=True).add(
            features, np.ma.array([0, 9], mask=[False, True])
        )


def test_sums_are_handed_over_once() -> None:
    sums = new_sums()
    sums.add(*records(3))
    sums.take()
    assert_unusable(sums)


def assert_unusable(sums: ClassSums) -> None:
    uses: list[Callable[[], object]] = [
        sums.take,
        lambda: sums.hand_over(process=1),
        lambda: sums.add(*records(3)),
        lambda: sums.merge(new_sums().hand_over(process=1)),
    ]
    for use_again in uses:
        with pytest.raises(SummingError, match="released already"):
            use_again()


def test_sums_that_were_handed_over_are_no_longer_where_they_came_from() -> None:
    sums = new_sums()
    sums.add(*records(3))
    sums.hand_over(process=1)
    assert_unusable(sums)


def test_the_sums_of_a_process_count_once() -> None:
    sums, expected = new_sums(), new_sums()
    expected.add(*records(3))
    first, second = (handed_over(new_sums(), process) for process in (1, 2))
    sums.merge(second)
    for again in (first, second):
        with pytest.raises(SummingError, match="once, in the order of processes"):
            sums.merge(again)
    assert np.array_equal(sums.take().features, expected.take().features)


def handed_over(sums: ClassSums, process: int) -> PartialSums:
    sums.add(*records(3))
    return sums.hand_over(process=process)


def test_the_process_that_releases_and_merged_sums_hand_nothing_over() -> None:
    with pytest.raises(SummingError, match="released here"):
        new_sums().hand_over(process=0)
    sums = new_sums()
    sums.merge(handed_over(new_sums(), 1))
    with pytest.raises(SummingError, match="released here"):
        sums.hand_over(process=2)


@pytest.mark.parametrize(
    "other",
    [
        ClassSums(class_count=CLASSES + 1, dimension=DIMENSION, non_negative=False),
        ClassSums(class_count=CLASSES, dimension=DIMENSION + 1, non_negative=False),
        ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=True),
        ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=False, unit_of_privacy="one person"),
    ],
)
def test_sums_of_another_shape_are_not_merged(other: ClassSums) -> None:
    with pytest.raises(SummingError, match="cannot be merged"):
        new_sums().merge(other.hand_over(process=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 2},
        {"images": -1},
        {"totals": np.full((CLASSES, DIMENSION + 1), -(2**63))},
        {"totals": np.zeros((CLASSES, DIMENSION + 1))},
        {"persons": (0, 1)},
    ],
)
def test_sums_that_so_many_images_cannot_have_are_not_merged(changes: dict[str, object]) -> None:
    sums = new_sums()
    features = np.zeros((3, DIMENSION), dtype=np.float32)
    features[:, 0] = 1
    sums.add(features, np.zeros(3, dtype=np.int64))
    part = sums.hand_over(process=1)
    merged = new_sums()
    with pytest.raises(SummingError, match=r"larger than|first and last"):
        merged.merge(dataclasses.replace(part, **changes))  # type: ignore[arg-type]
    merged.merge(part)
    assert merged.take().features.max() == 3 << lattice_exponent(DIMENSION)


def test_what_is_handed_over_shows_no_private_value_when_printed() -> None:
    part = handed_over(new_sums(), 1)
    assert repr(part) == "PartialSums(process=1, non_negative=False, unit_of_privacy='one image')"


def test_more_records_than_int64_can_hold_are_refused_before_anything_overflows() -> None:
    sums = new_sums()
    assert sums.max_records * 2**sums.lattice_exponent == 2**62
    sums.max_records = 5
    sums.add(*records(5))
    with pytest.raises(SummingError, match="64-bit"):
        sums.add(*records(1))
    assert sums.take().weighted_counts.sum() == 5 * sums.count_weight


def test_the_records_of_all_processes_together_are_limited_so() -> None:
    sums = new_sums()
    sums.max_records = 5
    sums.add(*records(2))
    sums.merge(handed_over(new_sums(), 1))
    with pytest.raises(SummingError, match="64-bit"):
        sums.merge(handed_over(new_sums(), 2))
    assert sums.take().weighted_counts.sum() == 5 * sums.count_weight


def test_the_accumulator_shows_no_private_value_when_printed() -> None:
    sums = new_sums()
    sums.add(*records(12))
    assert repr(sums) == "ClassSums(class_count=4, dimension=37)"


@pytest.mark.parametrize(("classes", "dimension"), [(0, 3), (3, 0)])
def test_an_empty_shape_is_refused(classes: int, dimension: int) -> None:
    with pytest.raises(SummingError, match="at least one class"):
        ClassSums(class_count=classes, dimension=dimension, non_negative=False)


@pytest.mark.parametrize(
    ("unit", "step"),
    [("one image", "bound_records"), ("one person", "bound_records"), ("one person", "clip_contribution")],
)
def test_sums_that_a_change_left_half_done_are_not_released(
    unit: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added again, the images that were in already would count twice."""

    def rows_until_ctrl_c(features: np.ndarray, **parameters: object) -> Iterator[np.ndarray]:
        yield from bound_records(features, **parameters)[:4]  # type: ignore[arg-type]
        raise KeyboardInterrupt

    def ctrl_c(*_: object, **__: object) -> np.ndarray:
        raise KeyboardInterrupt

    sums = ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=False, unit_of_privacy=unit)
    arguments = (*records(6), np.array([0, 0, 1, 1, 1, 2]) if unit == "one person" else None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(summing, step, rows_until_ctrl_c if step == "bound_records" else ctrl_c)
        sums.add(*arguments)
    for use in (lambda: sums.add(*arguments), sums.take):
        with pytest.raises(SummingError, match="broken off"):
            use()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_sums_are_not_copied_since_the_copy_could_be_released_too(copied: Callable[[ClassSums], object]) -> None:
    with pytest.raises(SummingError, match="cannot be copied"):
        copied(new_sums())


def test_records_that_come_while_others_are_being_added_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler, say: the person whose images it brings could come again afterwards."""
    sums = by_person()
    features, labels = records(1)

    def add_another_meanwhile(features: np.ndarray, **parameters: object) -> np.ndarray:
        with pytest.raises(SummingError, match="broken off"):
            sums.add(features, labels, np.array([7]))
        return bound_records(features, **parameters)  # type: ignore[arg-type]

    monkeypatch.setattr(summing, "bound_records", add_another_meanwhile)
    sums.add(features, labels, np.array([6]))
    assert sums.take().weighted_counts.sum() == sums.count_weight


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"persons": (4, 0)}, "comes after the last"),
        ({"totals": np.full((CLASSES, DIMENSION + 1), -1)}, "are negative"),
    ],
)
def test_a_part_that_was_damaged_on_its_way_is_refused(changes: dict[str, Any], sentence: str) -> None:
    unit = "one person" if "persons" in changes else "one image"

    def sums() -> ClassSums:
        return ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=True, unit_of_privacy=unit)

    other = sums()
    other.add(*records(3), np.array([0, 1, 4]) if unit == "one person" else None)
    part = dataclasses.replace(other.hand_over(process=1), **changes)
    with pytest.raises(SummingError, match=sentence):
        sums().merge(part)


def test_what_is_refused_leaves_the_sums_as_they_were() -> None:
    features, labels = records(6)
    sums, expected = new_sums(), new_sums()
    for each in (sums, expected):
        each.add(features, labels)
    for wrong in (labels + CLASSES, labels[:3], labels * 0.5):
        with pytest.raises(SummingError):
            sums.add(features, wrong)
    assert np.array_equal(sums.take().features, expected.take().features)


def test_features_that_cannot_be_bounded_are_refused_before_anything_changes() -> None:
    features, labels = records(3)
    sums = new_sums()
    with pytest.raises(BoundingError, match="NumPy array of float16, float32 or float64"):
        sums.add(np.rint(features).astype(np.int64), labels)  # type: ignore[arg-type]
    assert not sums.take().weighted_counts.any()


def test_rows_are_bounded_and_summed_a_few_at_a_time_to_the_same_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = records(50)
    features[7] *= 100
    expected, found = new_sums(), new_sums()
    expected.add(features, labels)
    monkeypatch.setattr(bounding, "CHUNK_VALUES", 3 * DIMENSION)
    found.add(features, labels)
    assert np.array_equal(found.take().features, expected.take().features)


def test_a_defect_that_is_found_when_some_rows_are_in_leaves_sums_that_are_not_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def defective_at_the_second_call(features: np.ndarray, **parameters: object) -> np.ndarray:
        calls.append(len(features))
        if len(calls) == 2:
            raise BoundingError("nothing was released")
        return bound_records(features, **parameters)  # type: ignore[arg-type]

    monkeypatch.setattr(bounding, "CHUNK_VALUES", 2 * DIMENSION)
    monkeypatch.setattr(summing, "bound_records", defective_at_the_second_call)
    sums = new_sums()
    with pytest.raises(BoundingError):
        sums.add(*records(5))
    assert calls == [2, 2]
    assert_unusable(sums)


def test_what_is_promised_of_the_records_cannot_be_changed_afterwards() -> None:
    for name in ("non_negative", "unit_of_privacy"):
        with pytest.raises(AttributeError):
            setattr(new_sums(), name, True)


# Sums by person


def by_person() -> ClassSums:
    return ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=False, unit_of_privacy="one person")


def test_persons_with_one_image_each_are_summed_as_images_are() -> None:
    features, labels = records(50)
    images, persons = new_sums(), by_person()
    images.add(features, labels)
    persons.add(features, labels, np.arange(50))
    expected, found = images.take(), persons.take()
    assert np.array_equal(found.features, expected.features)
    assert np.array_equal(found.weighted_counts, expected.weighted_counts)


def test_a_persons_images_are_clipped_together_however_the_batches_fall() -> None:
    features, labels = records(60)
    owners = np.repeat([3, 4, 9], [1, 19, 40])
    expected = by_person()
    expected.add(features, labels, owners)
    total = expected.take()
    for size in (1, 7, 20):
        sums = by_person()
        for start in range(0, 60, size):
            batch = slice(start, start + size)
            sums.add(features[batch], labels[batch], owners[batch])
        again = sums.take()
        assert np.array_equal(again.features, total.features)
        assert np.array_equal(again.weighted_counts, total.weighted_counts)


def test_a_person_who_comes_again_is_refused_within_a_batch_and_after_it() -> None:
    features, labels = records(3)
    with pytest.raises(SummingError, match="in a row"):
        by_person().add(features, labels, np.array([1, 2, 1]))
    sums = by_person()
    sums.add(features, labels, np.array([1, 1, 2]))
    with pytest.raises(SummingError, match="in a row"):
        sums.add(features, labels, np.array([1, 3, 3]))


@pytest.mark.parametrize("persons", [None, np.zeros(2, dtype=np.int64), np.zeros(3), np.zeros((3, 1), dtype=np.int64)])
def test_persons_are_one_integer_for_each_image(persons: np.ndarray | None) -> None:
    with pytest.raises(SummingError, match="one for each image"):
        by_person().add(*records(3), persons)


def test_persons_have_no_place_where_the_unit_is_one_image() -> None:
    with pytest.raises(SummingError, match="unit of privacy is one image"):
        new_sums().add(*records(3), np.arange(3))


def test_sums_by_person_of_several_processes_are_those_of_one() -> None:
    """Every split between persons, into two or three, some with nobody."""
    features, labels = records(12)
    owners = np.repeat([3, 4, 9, 11], [1, 4, 6, 1])
    expected = by_person()
    expected.add(features, labels, owners)
    total = expected.take()
    cuts = [0, 1, 5, 11, 12]
    for first in cuts:
        for second in (cut for cut in cuts if cut >= first):
            shares = [by_person() for _ in range(3)]
            for sums, start, stop in zip(shares, (0, first, second), (first, second, 12), strict=True):
                sums.add(features[start:stop], labels[start:stop], owners[start:stop])
            for process in (1, 2):
                shares[0].merge(shares[process].hand_over(process=process))
            found = shares[0].take()
            assert np.array_equal(found.features, total.features)
            assert np.array_equal(found.weighted_counts, total.weighted_counts)


def sums_of_persons(*numbers: int) -> ClassSums:
    sums = by_person()
    sums.add(*records(len(numbers)), np.array(numbers))
    return sums


@pytest.mark.parametrize(("persons", "others"), [((1, 2), (2, 3)), ((3,), (1, 2)), ((1, 4), (2, 3))])
def test_a_person_who_could_be_in_the_sums_of_two_processes_is_refused(
    persons: tuple[int, ...], others: tuple[int, ...]
) -> None:
    sums = sums_of_persons(*persons)
    with pytest.raises(SummingError, match="a person could be in the sums of two"):
        sums.merge(sums_of_persons(*others).hand_over(process=1))
    between = by_person()
    between.merge(sums_of_persons(*persons).hand_over(process=1))
    with pytest.raises(SummingError, match="a person could be in the sums of two"):
        between.merge(sums_of_persons(*others).hand_over(process=2))


def test_a_person_in_merged_sums_does_not_come_again() -> None:
    sums = sums_of_persons(1)
    sums.merge(sums_of_persons(2, 3).hand_over(process=1))
    for person in (1, 2, 3):
        with pytest.raises(SummingError, match="in a row"):
            sums.add(*records(1), np.array([person]))
    sums.add(*records(1), np.array([4]))


def test_sums_by_person_without_their_persons_are_refused() -> None:
    part = sums_of_persons(2, 3).hand_over(process=1)
    with pytest.raises(SummingError, match="first and last"):
        by_person().merge(dataclasses.replace(part, persons=None))


def test_another_unit_of_privacy_is_refused() -> None:
    with pytest.raises(SummingError, match="allowed are one image and one person"):
        ClassSums(class_count=2, dimension=3, non_negative=True, unit_of_privacy="one household")


# Sums that are kept, for the run to go on if it is interrupted


@pytest.mark.parametrize("by_person", [False, True])
@pytest.mark.parametrize("cuts", [(0,), (40,), (13, 13, 57), (101,)])
def test_sums_that_were_kept_and_gone_on_from_are_those_of_an_uninterrupted_run(
    by_person: bool, cuts: tuple[int, ...]
) -> None:
    features, labels = records(101)
    persons = np.repeat(np.arange(26), 4)[:101]
    persons[12], persons[56] = 3, 14  # of two persons the last image is cut off: they end where the run does
    persons[13:16], persons[57:] = 4, np.repeat(np.arange(15, 26), 4)

    def summed(*ends: int) -> tuple[list[int], list[int]]:
        sums, begin = new_sums_of(by_person), 0
        for end in (*ends, len(labels)):
            sums.add(features[begin:end], labels[begin:end], persons[begin:end] if by_person else None)
            if end < len(labels):
                kept, sums = sums.checkpoint(), new_sums_of(by_person)
                sums.restore(kept)
            begin = end
        taken = sums.take()
        return taken.features.tolist(), taken.weighted_counts.tolist()

    assert summed(*cuts) == summed()


def new_sums_of(by_person: bool) -> ClassSums:
    unit = "one person" if by_person else "one image"
    return ClassSums(class_count=CLASSES, dimension=DIMENSION, non_negative=False, unit_of_privacy=unit)


def test_sums_go_on_after_they_were_kept_and_what_was_kept_stays_as_it_was() -> None:
    features, labels = records(20)
    sums = new_sums()
    sums.add(features[:10], labels[:10])
    kept = sums.checkpoint()
    before = kept.totals.copy()
    sums.add(features[10:], labels[10:])
    assert np.array_equal(kept.totals, before)
    assert kept.images == 10
    assert sums.take().weighted_counts.sum() == 20 * sums.count_weight


def test_a_person_who_was_finished_to_be_kept_gets_no_more_images() -> None:
    """They would be clipped twice, and count twice."""
    features, labels = records(4)
    sums = new_sums_of(True)
    sums.add(features[:2], labels[:2], np.array([5, 6]))
    kept = sums.checkpoint()
    with pytest.raises(SummingError, match="in a row"):
        sums.add(features[2:], labels[2:], np.array([6, 7]))
    gone_on = new_sums_of(True)
    gone_on.restore(kept)
    for person in (5, 6):
        with pytest.raises(SummingError, match="in a row"):
            gone_on.add(features[2:3], labels[2:3], np.array([person]))


def test_a_process_hands_over_whose_images_it_has_from_before_the_interruption() -> None:
    features, labels = records(4)
    sums = new_sums_of(True)
    sums.add(features[:2], labels[:2], np.array([5, 6]))
    gone_on = new_sums_of(True)
    gone_on.restore(sums.checkpoint())
    gone_on.add(features[2:], labels[2:], np.array([7, 8]))
    part = gone_on.hand_over(process=1)
    assert part.persons == (5, 8)
    assert part.images == 4


def test_sums_that_were_kept_are_restored_once_and_before_anything_else() -> None:
    features, labels = records(4)
    first = new_sums()
    first.add(features, labels)
    kept = first.checkpoint()
    used = new_sums()
    used.add(features, labels)
    with pytest.raises(SummingError, match="without an image"):
        used.restore(kept)
    restored = new_sums()
    restored.restore(kept)
    with pytest.raises(SummingError, match="without an image"):
        restored.restore(kept)
    with pytest.raises(SummingError, match="in the order of processes"):
        restored.merge(kept)
    with pytest.raises(SummingError, match="without an image"):
        new_sums().restore(first.hand_over(process=1))


def test_merged_sums_are_not_kept_as_they_could_be_merged_again() -> None:
    part = new_sums().hand_over(process=1)
    sums = new_sums()
    sums.merge(part)
    with pytest.raises(SummingError, match="not kept"):
        sums.checkpoint()
    with pytest.raises(SummingError, match="without an image"):
        sums.restore(new_sums().checkpoint())


def test_sums_that_were_taken_are_not_kept() -> None:
    sums = new_sums()
    sums.take()
    with pytest.raises(SummingError, match="released already"):
        sums.checkpoint()


def test_records_before_the_interruption_count_towards_the_limit() -> None:
    sums = new_sums()
    sums.add(*records(1))
    full = new_sums()
    full.restore(dataclasses.replace(sums.checkpoint(), images=full.max_records))
    with pytest.raises(SummingError, match="64-bit"):
        full.add(*records(1))
