"""Trusted core: the exact, class-conditional sum of bounded records. `PROOF.md` beside this file holds the argument."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dpmepf.artifacts.sensitivity import lattice_exponent
from dpmepf.embed.bounding import bound_records
from dpmepf.shared.errors import DpmepfError

SUM_BITS = 62  # sums stay within ±2^62, which leaves noise a bit of int64 to itself


class SummingError(DpmepfError):
    """Records that cannot be summed, or sums that have already been released."""


@dataclass(frozen=True, kw_only=True)
class ExactSums:
    """What leaves the accumulator, once: private, un-noised. Only `release` may see it."""

    features: npt.NDArray[np.int64] = field(repr=False)  # K x D, lattice units
    counts: npt.NDArray[np.int64] = field(repr=False)  # K, records


class ClassSums:
    """Sum of the bounded features of each class, and number of records of each class.

    Guarantee: after any sequence of `add` and `merge`, the state is Σ_x e_y(x) ⊗ bound(φ(x)) and Σ_x e_y(x), exactly:
        a function of the multiset of (feature row, label), not of their order, batches or processes. Every record
        passes through `bound_records` here, so no caller can add an unbounded one.
    Assumes: what `bound_records` assumes.
    Source: DESIGN §3; PROOF.md, claim 2.
    Args:
        class_count: K >= 1. dimension: D >= 1.
        non_negative: the feature map promises coordinates >= 0, and every record is held to it.
    Edge cases: no record at all leaves zeros; a batch of no records changes nothing.
    Raises: SummingError for labels outside 0..K-1, more than 2^(62-k) records, or use after `take`.
    """

    def __init__(self, *, class_count: int, dimension: int, non_negative: bool) -> None:
        if class_count < 1 or dimension < 1:
            raise SummingError(f"sums need at least one class and one dimension, not {class_count} and {dimension}")
        self.class_count = class_count
        self.dimension = dimension
        self.non_negative = non_negative
        self.lattice_exponent = lattice_exponent(dimension)
        self.max_records = 1 << (SUM_BITS - self.lattice_exponent)
        self._records = 0
        self._sums: ExactSums | None = ExactSums(
            features=np.zeros((class_count, dimension), dtype=np.int64),
            counts=np.zeros(class_count, dtype=np.int64),
        )

    def __repr__(self) -> str:
        return f"ClassSums(class_count={self.class_count}, dimension={self.dimension})"  # no private value in a log

    def add(self, features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> None:
        """Bound B×D `features` and add each row to the sum of its class; `labels` are B integers in 0..K-1."""
        sums = self._unreleased()
        labels = self._checked_labels(features, labels)
        self._reserve(len(labels))
        bounded = bound_records(features, lattice_exponent=self.lattice_exponent, non_negative=self.non_negative)
        for label, row in zip(labels.tolist(), bounded, strict=True):
            sums.features[label] += row
        sums.counts[...] += np.bincount(labels, minlength=self.class_count)

    def merge(self, other: ClassSums) -> None:
        """Add the sums of `other`, over other records of the same schema, and empty `other`."""
        sums = self._unreleased()
        shape = (self.class_count, self.dimension, self.non_negative)
        if shape != (other.class_count, other.dimension, other.non_negative):
            raise SummingError("sums of different classes, dimensions or feature maps cannot be merged")
        if other is self:
            raise SummingError("sums cannot be merged with themselves: every record would count twice")
        self._reserve(other._records)
        taken = other.take()
        sums.features[...] += taken.features
        sums.counts[...] += taken.counts

    def take(self) -> ExactSums:
        """Hand the exact sums over, once; the accumulator is unusable afterwards."""
        sums = self._unreleased()
        self._sums = None
        self._records = 0
        return sums

    def _unreleased(self) -> ExactSums:
        if self._sums is None:
            raise SummingError("these sums have been released already; embed the data again for another release")
        return self._sums

    def _checked_labels(
        self, features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int64]:
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise SummingError(f"features must be a matrix with {self.dimension} columns, the dimension of the sums")
        if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise SummingError("labels must be integers, one for each record")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.class_count):
            raise SummingError(f"a label is outside 0 to {self.class_count - 1}, the declared classes")
        return labels.astype(np.int64)

    def _reserve(self, records: int) -> None:
        if self._records + records > self.max_records:
            raise SummingError(
                f"more than 2^{SUM_BITS - self.lattice_exponent} records would leave 64-bit sums; split the data set"
            )
        self._records += records
