"""Damage at random: whatever happened to the bytes, the file is refused in one sentence or passes the audit.

A flip is one to eight bits of one byte. Half of the flips fall anywhere, half on the metadata that HDF5 lives by, which
is small; as checksums of HDF5's catch nearly all of those, some are made with the checksum made right again, as a
forger would. The seeds are fixed: these are the same files every time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_examples import example_artifact
from artifact_users import read_and_audit
from limited_process import Ending, call_limited
from metadata_blocks import checksummed_blocks, reseal, set_end_of_file

from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.shared.errors import DpmepfError

ACCEPTED = "accepted"
TOGETHER = 5  # files that one process reads, within the limits that are meant for one
BLOCKS: list[tuple[int, int]] = []

Damage = Callable[[random.Random, bytearray], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "a.h5"
    write_artifact(path, example_artifact(classes=tuple("abcdefghij"), feature_dimension=200))
    return path.read_bytes()


def flip_anywhere(chance: random.Random, content: bytearray) -> None:
    content[chance.randrange(len(content))] ^= chance.randrange(1, 256)


def flip_metadata(chance: random.Random, content: bytearray) -> None:
    start, end = chance.choice(BLOCKS)
    content[chance.randrange(start, end + 4)] ^= chance.randrange(1, 256)


def flip_metadata_and_its_checksum(chance: random.Random, content: bytearray) -> None:
    block = chance.choice(BLOCKS)
    content[chance.randrange(*block)] ^= chance.randrange(1, 256)
    reseal(content, [block])


def flip_several(chance: random.Random, content: bytearray) -> None:
    for _ in range(chance.randrange(2, 17)):
        chance.choice((flip_anywhere, flip_metadata_and_its_checksum))(chance, content)


def truncate(chance: random.Random, content: bytearray) -> None:
    del content[chance.randrange(len(content)) :]


def truncate_and_say_so(chance: random.Random, content: bytearray) -> None:
    del content[chance.randrange(48, len(content)) :]
    set_end_of_file(content)


def read_and_audit_all(folder: Path) -> str:
    """What becomes of each file in `folder`; the first exception that is not ours ends it."""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            assert "Every claim holds" in read_and_audit(path)
            found.append(ACCEPTED)
        except DpmepfError as error:
            assert str(error).isprintable(), path
            found.append(type(error).__name__)
    return " ".join(found)


def outcomes(damage: Damage, number: int, *, good: bytes, folder: Path) -> Counter[str]:
    """What becomes of `number` copies of the good file, each damaged in its own way: how often which error."""
    BLOCKS[:] = checksummed_blocks(good)
    chance = random.Random(damage.__name__)
    paths = [folder / f"{index}.h5" for index in range(TOGETHER)]
    found: list[str] = []
    while len(found) < number:
        for path in paths:
            content = bytearray(good)
            while content == good:
                damage(chance, content)
            path.write_bytes(content)
        outcome = call_limited(read_and_audit_all, folder)
        assert outcome.ending is Ending.RETURNED, f"among files {len(found)} to {len(found) + TOGETHER}: {outcome}"
        found += outcome.message.split()
    assert len(found) == number
    return Counter(found)


@pytest.mark.parametrize("damage", [flip_anywhere, flip_metadata])
def test_a_flipped_byte_is_refused_or_harmless(damage: Damage, good: bytes, tmp_path: Path) -> None:
    found = outcomes(damage, 500, good=good, folder=tmp_path)
    assert found[ACCEPTED] < 100, found


@pytest.mark.parametrize("damage", [flip_metadata_and_its_checksum, flip_several])
def test_flips_that_no_checksum_shows_and_several_at_once_are_refused_or_harmless(
    damage: Damage, good: bytes, tmp_path: Path
) -> None:
    found = outcomes(damage, 100, good=good, folder=tmp_path)
    assert 0 < found[ACCEPTED] < 60 or damage is flip_several, found
    assert len(found) >= 5, found  # it gets beyond the first look at the file


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_anywhere, flip_metadata_and_its_checksum, flip_several])
def test_thousands_of_flips_are_refused_or_harmless(damage: Damage, good: bytes, tmp_path: Path) -> None:
    outcomes(damage, 3000, good=good, folder=tmp_path)


@pytest.mark.parametrize("damage", [truncate, truncate_and_say_so])
def test_a_truncated_file_is_always_refused(damage: Damage, good: bytes, tmp_path: Path) -> None:
    assert ACCEPTED not in outcomes(damage, 100, good=good, folder=tmp_path)
