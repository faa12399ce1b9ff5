"""The file with the exact sums of a run that is not finished: the owner's alone, of one run only, exact."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from dpmepf.embed.checkpoint import Checkpoint, CheckpointError
from dpmepf.embed.summing import ClassSums

RUN, ANOTHER_RUN = bytes(range(32)), bytes(32)


def new_sums(unit: str = "one image") -> ClassSums:
    return ClassSums(class_count=3, dimension=5, non_negative=False, unit_of_privacy=unit)


def keep(file: Path, *, images: int = 7, unit: str = "one image", fingerprint: bytes = RUN) -> np.ndarray:
    """Sum some images and keep the sums after them; return the totals."""
    sums, random = new_sums(unit), np.random.default_rng(0)
    checkpoint = Checkpoint(path=file, on_failure=pytest.fail)
    checkpoint.restore(new_sums(unit), fingerprint=fingerprint)
    features = random.standard_normal((images, 5)).astype(np.float32)
    sums.add(features, random.integers(0, 3, images), np.arange(images) if unit == "one person" else None)
    part = sums.checkpoint()
    checkpoint.save(part, done=images + 2)
    return part.totals


@pytest.mark.parametrize("unit", ["one image", "one person"])
@pytest.mark.parametrize("images", [0, 7])
def test_what_is_kept_comes_back(tmp_path: Path, unit: str, images: int) -> None:
    totals = keep(tmp_path / "kept", unit=unit, images=images)
    sums = new_sums(unit)
    assert Checkpoint(path=tmp_path / "kept").restore(sums, fingerprint=RUN) == images + 2
    part = sums.hand_over(process=1)
    assert np.array_equal(part.totals, totals)
    assert (part.images, part.persons) == (images, (0, images - 1) if images and unit == "one person" else None)


def test_without_a_file_a_run_begins_at_the_beginning(tmp_path: Path) -> None:
    sums = new_sums()
    assert Checkpoint(path=tmp_path / "kept").restore(sums, fingerprint=RUN) == 0
    assert sums.hand_over(process=1).images == 0


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_file_is_for_its_owner_only_also_where_it_replaces_another(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keep(tmp_path / "kept")
        assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600
        (tmp_path / "other").touch(mode=0o666)
        Checkpoint(path=tmp_path / "other").save(new_sums().checkpoint(), done=0)
        assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_touch_is_not_trusted(tmp_path: Path, mode: int) -> None:
    keep(tmp_path / "kept")
    (tmp_path / "kept").chmod(mode)
    with pytest.raises(CheckpointError, match="not yours alone"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN)


def test_the_sums_of_another_run_are_refused_and_left_alone(tmp_path: Path) -> None:
    keep(tmp_path / "kept", fingerprint=ANOTHER_RUN)
    content = (tmp_path / "kept").read_bytes()
    with pytest.raises(CheckpointError, match="another run"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN)
    assert (tmp_path / "kept").read_bytes() == content


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    keep(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint(path=tmp_path / "link").restore(new_sums(), fingerprint=RUN)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"no file|Is a directory"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN)


def test_a_missing_folder_is_said_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint(path=tmp_path / "none" / "kept").restore(new_sums(), fingerprint=RUN)


def test_every_flipped_bit_and_every_missing_end_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    keep(file)
    content = file.read_bytes()
    damaged = [content[:length] for length in range(0, len(content), 17)] + [content + b"\0", content + bytes(1 << 20)]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for bad in damaged:
        file.write_bytes(bad)
        with pytest.raises(CheckpointError):
            Checkpoint(path=file).restore(new_sums(), fingerprint=RUN)


@pytest.mark.parametrize("change", [lambda a: {**a, "more": a["totals"]}, lambda a: {"totals": a["totals"]}])
def test_another_content_is_refused(tmp_path: Path, change: Callable[[dict], dict]) -> None:
    keep(tmp_path / "kept")
    (tmp_path / "kept").write_bytes(save(change(load((tmp_path / "kept").read_bytes()))))
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN)


def test_a_disk_that_is_full_is_said_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path / "kept")
    content, said = (tmp_path / "kept").read_bytes(), []
    checkpoint = Checkpoint(path=tmp_path / "kept", on_failure=said.append)
    sums = new_sums()
    checkpoint.restore(sums, fingerprint=RUN)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpmepf.artifacts.atomic_file.os.fsync", full)
    checkpoint.save(sums.checkpoint(), done=9)
    assert said == [f"the sums could not be kept in {tmp_path / 'kept'} (No space left on device); the run goes on"]
    assert (tmp_path / "kept").read_bytes() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_deleting_takes_what_a_killed_process_left_beside_it_and_nothing_else(tmp_path: Path) -> None:
    keep(tmp_path / "kept")
    keep(tmp_path / "kept2")
    (tmp_path / ".kept.0123456789abcdef.partial").write_bytes(b"private")
    Checkpoint(path=tmp_path / "kept").delete()
    assert list(tmp_path.iterdir()) == [tmp_path / "kept2"]
    Checkpoint(path=tmp_path / "kept").delete()


def test_it_is_due_after_a_while_only_and_later_where_writing_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("dpmepf.embed.checkpoint.time.monotonic", lambda: now[0])
    checkpoint = Checkpoint(path=tmp_path / "kept", interval_seconds=10)
    sums = new_sums()
    checkpoint.restore(sums, fingerprint=RUN)
    assert not checkpoint.due()
    now[0] = 10.0
    assert checkpoint.due()

    def slow(*_: object, **__: object) -> None:
        now[0] += 3

    monkeypatch.setattr("dpmepf.embed.checkpoint.write_atomically", slow)
    checkpoint.save(sums.checkpoint(), done=1)
    now[0] += 149  # fifty times three seconds, but one
    assert not checkpoint.due()
    now[0] += 1
    assert checkpoint.due()
