"""Trusted core: an artifact in memory: noisy integer sums, class names, feature map, ledger; nothing private."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpmepf.artifacts.errors import ClassNamesError, OutOfRangeError, OversizeError, ShapeError
from dpmepf.artifacts.ledger import LARGEST_DIMENSION, Ledger
from dpmepf.artifacts.merged_ledger import MergedLedger
from dpmepf.shared.class_names import check_class_names
from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.feature_map_description import FeatureMapDescription

LARGEST_SIZE = 2**25
"""K·D, the number of noisy feature sums: 256 MiB of int64, read in two to four seconds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """One noisy release, or the sum of several of disjoint records (merging.py).

    The arrays are checked against the class names and each other here; against the ledger by the audit and by
    `write_artifact`, so that a forged ledger can still be read and shown.

    Raises (on construction):
        ShapeError, OversizeError, OutOfRangeError, ClassNamesError: naming the part that is not as it must be.
    """

    noisy_sums: npt.NDArray[np.int64]
    """K x D; in steps of 2^coarsening_exponent lattice units."""
    noisy_counts: npt.NDArray[np.int64]
    """K; in the same steps; a record weighs count_weight_lattice lattice units."""
    classes: tuple[str, ...]
    feature_map: FeatureMapDescription
    ledger: Ledger | MergedLedger

    def __post_init__(self) -> None:
        try:
            check_class_names(self.classes)
        except DpmepfError as error:
            raise ClassNamesError(f"classes: {error}") from None
        sums, counts = self.noisy_sums, self.noisy_counts
        for name, array, rank in (("noisy_sums", sums, 2), ("noisy_counts", counts, 1)):
            if array.dtype != np.int64 or array.ndim != rank:
                raise ShapeError(f"{name}: expected int64 of rank {rank}, found {array.dtype} of rank {array.ndim}")
            if len(array) != len(self.classes):
                raise ShapeError(f"{name}: {len(array)} rows for {len(self.classes)} classes")
        check_size(*sums.shape)
        largest = 2 ** (63 - self.ledger.coarsening_exponent)
        for name, array in (("noisy_sums", sums), ("noisy_counts", counts)):
            if int(array.max()) > largest or int(array.min()) < -largest:
                raise OutOfRangeError(f"{name}: a value lies outside what a 64-bit sum can be after coarsening")
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def dimension(self) -> int:
        """D, the number of features."""
        return int(self.noisy_sums.shape[1])

    @property
    def coordinates(self) -> int:
        """How many noisy integers it holds; the ledger says how many it should."""
        return int(self.noisy_sums.size + self.noisy_counts.size)

    def feature_sums(self) -> npt.NDArray[np.float64]:
        """K x D noisy sums of the features of each class's records, in feature units."""
        return np.multiply(self.noisy_sums, self._step / 2.0**self.ledger.lattice_exponent, dtype=np.float64)

    def counts(self) -> npt.NDArray[np.float64]:
        """K noisy class sizes, in records; noise can make them negative."""
        return np.multiply(self.noisy_counts, self._step / self.ledger.count_weight_lattice, dtype=np.float64)

    @property
    def noise_std_features(self) -> float:
        """Standard deviation of the noise in each entry of `feature_sums`, coarsening included."""
        return self._noise_std / 2.0**self.ledger.lattice_exponent

    @property
    def noise_std_counts(self) -> float:
        """Standard deviation of the noise in each entry of `counts`, coarsening included."""
        return self._noise_std / self.ledger.count_weight_lattice

    @property
    def _step(self) -> float:
        return 2.0**self.ledger.coarsening_exponent

    @property
    def _noise_std(self) -> float:
        # Rounding to multiples of 2^s adds the variance of a uniform on 2^s integers, in each release before the sum.
        releases = self.ledger.releases
        return math.sqrt(sum(one.sigma * one.sigma + (4.0**one.coarsening_exponent - 1) / 12 for one in releases))


def check_size(class_count: int, dimension: int) -> None:
    """Refuse a K x D that is empty or too large to be held."""
    if class_count < 1 or dimension < 1:
        raise ShapeError(f"noisy_sums: the shape is {class_count} x {dimension}; both must be at least 1")
    if dimension > LARGEST_DIMENSION or class_count * dimension > LARGEST_SIZE:
        raise OversizeError(
            f"noisy_sums: {class_count} classes x {dimension} features is above the limit of {LARGEST_SIZE} numbers "
            f"(and {LARGEST_DIMENSION} features): choose fewer layers or stronger pooling"
        )
