"""Trusted core: the sum of several custodians' artifacts over disjoint records, and which may not be added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.errors import MismatchError, OutOfRangeError, RepeatedReleaseError
from dpmepf.artifacts.merged_ledger import merge_ledgers, mismatch
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map_description import FeatureMapDescription


def merge_artifacts(parts: Iterable[tuple[str, Artifact]]) -> Artifact:
    """Add up the noisy integers of artifacts, exactly, and keep the ledger of every release.

    Guarantee:
        The result is (epsilon, delta)-DP at the largest values of its releases (`MergedLedger`): it is post-processing
        of them. Its integers are the sum of theirs in the finest of their steps, without rounding, so that the order
        and the grouping of merges change nothing but the order of the ledgers.
    Assumes:
        What `MergedLedger` assumes; that every part passes its audit (`read_verified_artifact`).
    Source:
        PROOF.md, section 7.

    Args:
        parts: two or more artifacts, each with the name that messages call it by. They may be merged ones. They are
            taken one by one: of the largest, adding takes some 1.1 GB.

    Returns:
        The merged artifact.
    Raises:
        UsageError: fewer than two parts.
        RepeatedReleaseError: one release is in two of them.
        MismatchError: they differ in classes, feature map, relation, unit of privacy, lattice, or clamping.
        LedgerError: more releases than a merged artifact may hold.
        OutOfRangeError: a sum would not fit 64 bits; releases of fewer than 2^36 records together never come near.
    """
    merged: Artifact | None = None
    first, number = "", 0
    holders: dict[str, str] = {}  # of releases, by their id
    for name, part in parts:
        number += 1
        for release in part.ledger.releases:
            if release.release_id in holders:
                raise RepeatedReleaseError(
                    f"{name} holds the release {release.release_id}, and so does {holders[release.release_id]}: its "
                    "records would count twice; leave one of them out"
                )
            holders[release.release_id] = name
        if merged is None:
            merged, first = part, name
        else:
            _refuse_mismatch(first, merged, name, part)
            merged = _sum(merged, part)
    if merged is None or number < 2:
        raise UsageError(f"{number} artifact(s) to merge: name two or more")
    return merged


def _sum(one: Artifact, other: Artifact) -> Artifact:
    return Artifact(
        noisy_sums=_exact_sum(one, one.noisy_sums, other, other.noisy_sums),
        noisy_counts=_exact_sum(one, one.noisy_counts, other, other.noisy_counts),
        classes=one.classes,
        feature_map=one.feature_map,
        ledger=merge_ledgers(one.ledger.releases + other.ledger.releases),
    )


def _exact_sum(
    one: Artifact, values: npt.NDArray[np.int64], other: Artifact, more: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The sum in steps of 2^(the smaller coarsening exponent) lattice units."""
    step = min(one.ledger.coarsening_exponent, other.ledger.coarsening_exponent)
    shift, more_shift = one.ledger.coarsening_exponent - step, other.ledger.coarsening_exponent - step
    if (_largest(values) << shift) + (_largest(more) << more_shift) >= 2**63:  # in Python's integers
        raise OutOfRangeError("the sum of the artifacts does not fit 64-bit integers: one of them holds no such sums")
    total = values << shift
    total += more << more_shift
    return total


def _largest(values: npt.NDArray[np.int64]) -> int:
    return max(int(values.max()), -int(values.min()))


def _refuse_mismatch(first: str, one: Artifact, name: str, other: Artifact) -> None:
    """Say in what the artifact called `name` differs from that called `first`."""
    difference = (
        _classes_mismatch(one.classes, other.classes)
        or _feature_map_mismatch(one.feature_map, other.feature_map)
        or mismatch(one.ledger.releases[0], other.ledger.releases[0])
    )
    if difference is not None:
        raise MismatchError(f"{name} cannot be merged with {first}: {difference}")


def _classes_mismatch(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str | None:
    if ours == theirs:
        return None
    if sorted(ours) == sorted(theirs):
        return "its classes are in another order"
    if len(ours) != len(theirs):
        return f"its number of classes is {len(theirs)}, not {len(ours)}"
    number = next(number for number in range(len(ours)) if ours[number] != theirs[number])
    return f"its class {number + 1} is {theirs[number]!a}, not {ours[number]!a}"


def _feature_map_mismatch(ours: FeatureMapDescription, theirs: FeatureMapDescription) -> str | None:
    for field in dataclasses.fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if mine != other:
            return f"its feature map's {field.name} is {ascii(other)[:100]}, not {ascii(mine)[:100]}"
    return None
