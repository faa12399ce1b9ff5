"""Trusted core: bound what each image, and each person, adds, in integers. `PROOF.md` beside holds the argument."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dpmepf.artifacts.sensitivity import COARSEST_LATTICE_EXPONENT, FINEST_LATTICE_EXPONENT
from dpmepf.shared.errors import DpmepfError

MAX_NORM_BITS = 62  # dimension · 2^(2k) <= 2^62: a sum of squares never leaves int64
LARGEST_INT64 = (1 << 63) - 1
CHUNK_VALUES = 1 << 16  # 512 KiB of float64: a chunk stays in the second-level cache


class BoundingError(DpmepfError):
    """Features of the wrong kind reached the trusted core, or the core's own final check failed."""


def bound_records(
    features: npt.NDArray[np.floating], *, lattice_exponent: int, non_negative: bool
) -> npt.NDArray[np.int64]:
    """Bring each record's features onto the integer lattice of step 2^-k, with norm at most 1.

    Guarantee: every row q of the result satisfies Σq² <= 2^(2k), in exact integer arithmetic, whatever `features`
        holds; with `non_negative`, also q >= 0 in every coordinate. A row is a function of the same row of `features`
        alone: no other row, no batch size and no machine setting changes one bit of it.
    Assumes: nothing about the encoder; IEEE 754 float64 with monotone rounding; exact int64 arithmetic.
    Source: PROOF.md, claim 1; Casacuberta, Shoemate, Vadhan, Wagaman 2022 (arXiv 2207.10635) on why not in floating
        point.
    Args:
        features: B×D float16, float32 or float64, in units of φ (norm about 1 expected, nothing required).
        lattice_exponent: k, with 16 <= k <= 26 and D·2^(2k) <= 2^62.
        non_negative: raise negative coordinates to zero, so that ⟨q, q'⟩ >= 0 for any two records.
    Returns: B×D int64, in lattice units (2^-k of φ), coordinates truncated towards zero.
    Edge cases: a row with NaN or an infinity becomes the zero row; a longer row (1e30 included) is scaled down to norm
        1 in its own direction; denormals become 0; B = 0 gives an empty result.
    Raises: BoundingError for another dtype or shape, or an exponent out of range.
    """
    check_lattice(features, lattice_exponent)
    count, dimension = features.shape
    bounded = np.empty((count, dimension), dtype=np.int64)
    rows = rows_at_a_time(dimension)
    scaled = np.empty((min(rows, count), dimension), dtype=np.float64)
    for start in range(0, count, rows):
        chunk = features[start : start + rows]
        _bound_chunk(chunk, scaled[: len(chunk)], bounded[start : start + rows], lattice_exponent, non_negative)
    return bounded


def rows_at_a_time(dimension: int) -> int:
    """How many rows one chunk has; with fewer in a call, `bound_records` does the same in one go."""
    return max(1, CHUNK_VALUES // dimension)


def check_lattice(features: npt.NDArray[np.floating], lattice_exponent: int) -> None:
    """Refuse what `bound_records` refuses, before any of it is bounded."""
    if not isinstance(features, np.ndarray) or features.dtype not in (np.float16, np.float32, np.float64):
        raise BoundingError("features must be a NumPy array of float16, float32 or float64; convert them first")
    if features.ndim != 2 or features.shape[1] == 0:
        raise BoundingError("features must be a matrix, records × dimension, with at least one dimension")
    if not COARSEST_LATTICE_EXPONENT <= lattice_exponent <= FINEST_LATTICE_EXPONENT:
        raise BoundingError(
            f"the lattice exponent is {lattice_exponent}; allowed are {COARSEST_LATTICE_EXPONENT} to "
            f"{FINEST_LATTICE_EXPONENT}"
        )
    if features.shape[1] << (2 * lattice_exponent) > 1 << MAX_NORM_BITS:
        raise BoundingError(
            f"the lattice exponent {lattice_exponent} is too large for {features.shape[1]} dimensions: "
            "a squared norm would leave 64 bits; use a smaller one"
        )


def _bound_chunk(
    features: npt.NDArray[np.floating],
    scaled: npt.NDArray[np.float64],
    bounded: npt.NDArray[np.int64],
    lattice_exponent: int,
    non_negative: bool,
) -> None:
    """Fill `bounded` from `features`; `scaled` is scratch. Float arithmetic screens, integers decide."""
    squared_bound = 1 << (2 * lattice_exponent)
    with np.errstate(all="ignore"):  # NaN, infinities and overflow are expected here, and fail the comparison below
        np.multiply(features, 2.0**lattice_exponent, out=scaled, dtype=np.float64)
        np.trunc(scaled, out=scaled)
        squared_norms = np.einsum("ij,ij->i", scaled, scaled)
        too_long = ~(squared_norms <= float(squared_bound))  # `not <=`, so that NaN counts as too long
    scaled[too_long] = 0.0
    bounded[...] = scaled
    for row in np.flatnonzero(too_long):
        bounded[row] = _shorten(features[row], lattice_exponent)
    if non_negative and bounded.min() < 0:  # looking is several times faster than raising
        np.maximum(bounded, 0, out=bounded)
    if (np.einsum("ij,ij->i", bounded, bounded) > squared_bound).any():
        raise BoundingError(
            "a record's features exceeded their bound after bounding; nothing was released, and this is a defect to "
            "report"
        )


def _shorten(features: npt.NDArray[np.floating], lattice_exponent: int) -> npt.NDArray[np.int64]:
    """A row that is too long or not finite: a lattice row of norm at most 1 in its direction, by integer division."""
    row = features.astype(np.float64)
    if not np.isfinite(row).all():
        return np.zeros(row.shape, dtype=np.int64)
    _, exponent = math.frexp(float(np.abs(row).max()))
    row = np.ldexp(row, lattice_exponent - max(exponent, 0))  # |row| <= 2^k, so that its squares fit int64
    lattice = np.trunc(row).astype(np.int64)
    squared_norm = int(np.dot(lattice, lattice))  # exact, at most dimension · 2^(2k) <= 2^62; not 0, as norm(row) > 1
    norm_rounded_up = math.isqrt(squared_norm - 1) + 1
    shortened = (np.abs(lattice) << lattice_exponent) // norm_rounded_up  # towards zero: every factor is non-negative
    return np.sign(lattice) * shortened


def clip_contribution(contribution: npt.NDArray[np.int64], *, squared_bound: int) -> npt.NDArray[np.int64]:
    """Shorten the sum of one person's images to the bound that one image keeps.

    Guarantee: the result v satisfies Σv² <= squared_bound, in exact integer arithmetic, and has the signs of
        `contribution`. Where that kept the bound already it is returned as it is; a person with one image does.
    Assumes: exact int64 and Python integer arithmetic.
    Source: PROOF.md, claim 6.
    Args:
        contribution: int64 C×N, lattice units: all that one person adds to the sums, a row for each class.
        squared_bound: Λ² >= 1, squared lattice units.
    Returns: int64 C×N, truncated towards zero.
    Edge cases: any int64 may occur: where products would leave it, Python's integers take over, for a row at a time.
    Raises: BoundingError for another dtype or rank, or if the final check fails, which is a defect.
    """
    if contribution.dtype != np.int64 or contribution.ndim != 2:
        raise BoundingError("a person's contribution must be a matrix of int64, a row for each class")
    squared_norm = _squared_norm(contribution)
    if squared_norm <= squared_bound:
        return contribution
    bound = math.isqrt(squared_bound)
    norm_of_all = math.isqrt(squared_norm - 1) + 1  # rounded up
    clipped = np.stack([_times_ratio(row, bound, norm_of_all) for row in contribution])
    if _squared_norm(clipped) > squared_bound:
        raise BoundingError(
            "a person's contribution exceeded its bound after clipping; nothing was released, and this is a defect to "
            "report"
        )
    return clipped


def _squared_norm(rows: npt.NDArray[np.int64]) -> int:
    """Σv² over all rows, exact."""
    squared_norm = 0
    for row in rows:
        wide = row if row.size * _largest(row) ** 2 <= LARGEST_INT64 else row.astype(object)
        squared_norm += int(np.dot(wide, wide))
    return squared_norm


def _times_ratio(row: npt.NDArray[np.int64], numerator: int, denominator: int) -> npt.NDArray[np.int64]:
    """v·numerator/denominator for each v of `row`, truncated towards zero; 0 < numerator <= denominator."""
    wide = row if max(_largest(row) * numerator, denominator) <= LARGEST_INT64 else row.astype(object)
    return np.sign(row) * (np.abs(wide) * numerator // denominator).astype(np.int64)


def _largest(row: npt.NDArray[np.int64]) -> int:
    """max |v|, exact for -2^63 too."""
    return max(int(row.max(initial=0)), -int(row.min(initial=0)))
