"""Trusted core: the exact, class-conditional sum of bounded records. `PROOF.md` beside this file holds the argument."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON, UNITS
from dpmepf.artifacts.sensitivity import count_weight_lattice, lattice_exponent, record_norm_squared
from dpmepf.embed.bounding import bound_records, check_lattice, clip_contribution, rows_at_a_time
from dpmepf.shared.errors import DpmepfError

SUM_BITS = 62  # sums stay within ±2^62, which leaves noise a bit of int64 to itself


class SummingError(DpmepfError):
    """Records that cannot be summed, or sums that have been released already or were left half-changed."""


@dataclass(frozen=True, kw_only=True)
class ExactSums:
    """What leaves the accumulator, once: private, un-noised. Only `release` may see it. Lattice units throughout."""

    features: npt.NDArray[np.int64] = field(repr=False)  # K x D
    weighted_counts: npt.NDArray[np.int64] = field(repr=False)  # K, W for each image that was not clipped


@dataclass(frozen=True, kw_only=True)
class PartialSums:
    """The sums of some of the images: private, un-noised. Lattice units throughout.

    A process hands them to the one that releases, once, or keeps them to go on from if it is interrupted.
    """

    process: int  # whose they are, 0 where they are kept; the one that releases is process 0
    non_negative: bool
    unit_of_privacy: str
    images: int = field(repr=False)  # summed in `totals`
    persons: tuple[int, int] | None = field(repr=False)  # the first and the last of them; None by image, or without any
    totals: npt.NDArray[np.int64] = field(repr=False)  # K x (D + 1), weighted counts last


class ClassSums:
    """Sum of the bounded features of each class, and weighted number of images of each class.

    Guarantee: after any sequence of `add`, `checkpoint`, `restore` and `merge`, the state is exactly Σ u over all
        images, with u = (e_y ⊗ bound(φ(x)), W e_y): a function of the multiset of (feature row, label), not of order,
        batches, interruptions or processes. With the unit "one person" it is Σ clip(Σ u over the person's images) over
        all persons, and ‖clip(·)‖² <= Λ². Every image passes through `bound_records` and every person through
        `clip_contribution` here, so no caller can add more.
    Assumes: what these two assume; that the caller numbers persons rightly; of `merge`, that an image is added in one
        process only, and that parts arrive as they were handed over; of `restore`, that the part is as it was kept and
        none of its images is added again.
    Source: PROOF.md, claims 2, 6, 8 and 9.
    Args:
        class_count: K >= 1. dimension: D >= 1.
        non_negative: the feature map promises coordinates >= 0, and every record is held to it.
        unit_of_privacy: whose contribution is bounded: "one image" or "one person".
    Edge cases: no record at all leaves zeros; a batch of no records changes nothing. Of the person whose images are
        being added there is one vector for each class that the person is in: memory does not grow with the images.
    Raises: SummingError for labels outside 0..K-1, more than 2^(62-k) images, persons where none belong or none where
        they do, a person's images that are not all in a row or come after the person was finished, a part that does
        not fit, or use after `take` or `hand_over` or after a change that was broken off.
    """

    def __init__(
        self, *, class_count: int, dimension: int, non_negative: bool, unit_of_privacy: str = ONE_IMAGE
    ) -> None:
        if class_count < 1 or dimension < 1:
            raise SummingError(f"sums need at least one class and one dimension, not {class_count} and {dimension}")
        if unit_of_privacy not in UNITS:
            raise SummingError(f"the unit of privacy is {unit_of_privacy!a}; allowed are {' and '.join(UNITS)}")
        self.class_count = class_count
        self.dimension = dimension
        self._non_negative = non_negative
        self._unit_of_privacy = unit_of_privacy
        self.lattice_exponent = lattice_exponent(dimension)
        self.count_weight = count_weight_lattice(self.lattice_exponent)
        self.max_records = 1 << (SUM_BITS - self.lattice_exponent)
        self._records = 0
        self._last_merged = 0  # the process whose part was merged last; this one is 0, or hands over itself
        self._totals: npt.NDArray[np.int64] | None = np.zeros((class_count, dimension + 1), dtype=np.int64)
        # None once handed over, and while they change: what breaks a change off leaves sums that nobody can release
        self._first_person: int | None = None
        self._person: int | None = None  # the last one, whose images are being added, or were summed in a merged part
        self._own: dict[int, npt.NDArray[np.int64]] = {}  # that person's own sums, by class

    def __repr__(self) -> str:
        return f"ClassSums(class_count={self.class_count}, dimension={self.dimension})"  # no private value in a log

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise SummingError("sums cannot be copied or stored: the same records would be released twice")

    @property
    def non_negative(self) -> bool:
        """Whether every record is held to coordinates >= 0."""
        return self._non_negative

    @property
    def unit_of_privacy(self) -> str:
        """Whose contribution is bounded."""
        return self._unit_of_privacy

    def add(
        self,
        features: npt.NDArray[np.floating],
        labels: npt.NDArray[np.integer],
        persons: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Bound B×D `features` and add each row to the sum of its class.

        labels: B integers in 0..K-1. persons: whose image each is, as B integers that never fall, within a batch or
        from batch to batch; None where the unit of privacy is one image.
        """
        totals = self._taken_out()
        try:
            labels = self._checked_labels(features, labels)
            owners = self._checked_persons(persons, count=len(labels))
            check_lattice(features, self.lattice_exponent)
            self._reserve(len(labels))
        except DpmepfError:  # nothing has changed
            self._totals = totals
            raise
        for row, label, person in zip(self._bounded_rows(features), labels.tolist(), owners, strict=True):
            if person is None:
                target = totals[label]
            else:
                if person != self._person:
                    self._finish_person(totals)
                    self._person = person
                    if self._first_person is None:
                        self._first_person = person
                if label not in self._own:
                    self._own[label] = np.zeros(self.dimension + 1, dtype=np.int64)
                target = self._own[label]
            target[:-1] += row
            target[-1] += self.count_weight
        self._totals = totals

    def hand_over(self, *, process: int) -> PartialSums:
        """Hand the sums over to the process that releases, once; the accumulator is unusable afterwards.

        process: the number of this process, 1 or more. The person whose images came last is finished here.
        """
        if process < 1 or self._last_merged:
            raise SummingError("process 0 and sums that were merged are released here, and handed over to no other")
        totals = self._taken_out()
        self._finish_person(totals)
        return self._part(totals, process=process)

    def checkpoint(self) -> PartialSums:
        """A copy of the sums, for this process to go on from (`restore`) if it is interrupted.

        The person whose images came last is finished here: there can be no more of theirs.
        """
        if self._last_merged:
            raise SummingError("sums that were merged are released, and not kept to go on from")
        totals = self._taken_out()
        self._finish_person(totals)
        part = self._part(totals.copy(), process=0)
        self._totals = totals
        return part

    def restore(self, part: PartialSums) -> None:
        """Go on from what `checkpoint` kept, with the images that are not in it, before any other image is added."""
        if self._records or self._last_merged or part.process != 0:
            raise SummingError("only sums without an image can go on from sums that were kept, and from those alone")
        self._add_part(part)
        if part.persons is not None:
            self._first_person = part.persons[0]

    def merge(self, part: PartialSums) -> None:
        """Add what another process handed over: sums of other images and, by person, of later persons than all so far.

        A part that does not fit is refused before anything changes, and so is a process that does not come after those
        merged before: no part counts twice.
        """
        if part.process <= self._last_merged:
            raise SummingError("the sums of each process can be merged once, in the order of processes")
        self._add_part(part)
        self._last_merged = part.process

    def take(self) -> ExactSums:
        """Hand the exact sums over, once; the accumulator is unusable afterwards."""
        totals = self._taken_out()
        self._finish_person(totals)
        self._records = 0
        return ExactSums(features=totals[:, :-1], weighted_counts=totals[:, -1])

    def _part(self, totals: npt.NDArray[np.int64], *, process: int) -> PartialSums:
        return PartialSums(
            process=process,
            non_negative=self.non_negative,
            unit_of_privacy=self.unit_of_privacy,
            images=self._records,
            persons=None if self._first_person is None or self._person is None else (self._first_person, self._person),
            totals=totals,
        )

    def _add_part(self, part: PartialSums) -> None:
        """Add sums of other images and, by person, of later persons; what does not fit changes nothing."""
        promised = (part.unit_of_privacy, part.non_negative) == (self.unit_of_privacy, self.non_negative)
        if not promised or part.totals.shape != (self.class_count, self.dimension + 1):
            raise SummingError("sums of different classes, dimensions, feature maps or units cannot be merged")
        if (part.persons is not None) != (part.unit_of_privacy == ONE_PERSON and part.images > 0):
            raise SummingError("sums by person, and no others, come with their first and last person")
        if part.persons is not None and self._person is not None and part.persons[0] <= self._person:
            raise SummingError("a person could be in the sums of two processes and count twice")
        if part.persons is not None and part.persons[0] > part.persons[1]:
            raise SummingError("the first person of these sums comes after the last")
        if self.non_negative and int(part.totals.min()) < 0:
            raise SummingError("these sums are negative, which those of non-negative features cannot be")
        largest = max(int(part.totals.max()), -int(part.totals.min()))
        if part.totals.dtype != np.int64 or not largest <= part.images << self.lattice_exponent:
            raise SummingError("these sums are larger than those of as many images can be")
        totals = self._taken_out()
        try:
            self._reserve(part.images)
        except DpmepfError:
            self._totals = totals
            raise
        self._finish_person(totals)
        if part.persons is not None:
            self._person = part.persons[1]
        totals += part.totals
        self._totals = totals

    def _bounded_rows(self, features: npt.NDArray[np.floating]) -> Iterator[npt.NDArray[np.int64]]:
        """Each row of `features`, bounded: as many at a time as stay in the cache until they are summed."""
        step = rows_at_a_time(self.dimension)
        for start in range(0, len(features), step):
            part = features[start : start + step]
            yield from bound_records(part, lattice_exponent=self.lattice_exponent, non_negative=self.non_negative)

    def _finish_person(self, totals: npt.NDArray[np.int64]) -> None:
        """Clip what the current person adds, all classes together, and add it to the totals."""
        own, self._own = self._own, {}
        if not own:
            return
        squared_bound = record_norm_squared(self.lattice_exponent, self.count_weight)
        clipped = clip_contribution(np.stack(list(own.values())), squared_bound=squared_bound)
        for label, row in zip(own, clipped, strict=True):
            totals[label] += row

    def _taken_out(self) -> npt.NDArray[np.int64]:
        """The totals, for a change: until they are put back nobody else has them."""
        totals, self._totals = self._totals, None
        if totals is None:
            raise SummingError(
                "these sums have been released already, or adding to them was broken off; embed the data again for "
                "another release"
            )
        return totals

    def _checked_labels(
        self, features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int64]:
        labels = np.asarray(labels)  # without a mask, which would hide labels from these checks
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise SummingError(f"features must be a matrix with {self.dimension} columns, the dimension of the sums")
        if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
            raise SummingError("labels must be integers, one for each record")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.class_count):
            raise SummingError(f"a label is outside 0 to {self.class_count - 1}, the declared classes")
        return labels.astype(np.int64)

    def _checked_persons(self, persons: npt.NDArray[np.integer] | None, *, count: int) -> list[int] | list[None]:
        """Whose image each is, None where images are nobody's; a person once left may not come again."""
        if self.unit_of_privacy != ONE_PERSON:
            if persons is not None:
                raise SummingError("persons were given, but the unit of privacy is one image")
            return [None] * count
        persons = None if persons is None else np.asarray(persons)
        if persons is None or persons.shape != (count,) or persons.dtype.kind not in "iu":
            raise SummingError("persons must be integers, one for each image, where the unit of privacy is one person")
        numbers: list[int] = persons.tolist()
        # The last person may go on unless finished, as those in merged parts are.
        before = numbers[:1] if self._person is None else [self._person if self._own else self._person + 1]
        if any(later < earlier for earlier, later in zip([*before, *numbers], numbers, strict=False)):
            raise SummingError("the images of a person must be added in a row, persons in rising order")
        return numbers

    def _reserve(self, records: int) -> None:
        if self._records + records > self.max_records:
            raise SummingError(
                f"more than 2^{SUM_BITS - self.lattice_exponent} records would leave 64-bit sums; split the data set"
            )
        self._records += records
