"""The file with the exact sums of a run that is not finished: the owner's alone, of one run only, exact."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from dpmepf.artifacts.register import files_of
from dpmepf.embed.checkpoint import Checkpoint, CheckpointError
from dpmepf.embed.checkpoint_place import place_checkpoint
from dpmepf.embed.distributed import Processes
from dpmepf.embed.summing import ClassSums
from dpmepf.shared.errors import UsageError

RUN, ANOTHER_RUN = bytes(range(32)), bytes(32)


def new_sums(unit: str = "one image") -> ClassSums:
    return ClassSums(class_count=3, dimension=5, non_negative=False, unit_of_privacy=unit)


def keep(file: Path, *, images: int = 7, unit: str = "one image", fingerprint: bytes = RUN) -> np.ndarray:
    """Sum some images and keep the sums after them; return the totals."""
    sums, random = new_sums(unit), np.random.default_rng(0)
    checkpoint = Checkpoint(path=file)
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


def test_without_a_file_a_run_begins_at_the_beginning_and_begins_one(tmp_path: Path) -> None:
    sums, said = new_sums(), []
    assert Checkpoint(path=tmp_path / "kept", say=said.append).restore(sums, fingerprint=RUN) == 0
    assert sums.hand_over(process=1).images == 0
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600
    assert Checkpoint(path=tmp_path / "kept", say=said.append).restore(new_sums(), fingerprint=RUN) == 0
    assert [sentence.split()[0] for sentence in said] == ["exact", "going"]


def test_where_others_would_be_able_to_read_it_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without permissions."""
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777, **more: real(path, flags, 0o755, **more))
    with pytest.raises(CheckpointError, match="others can read it"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_said_before_any_image_is_read() -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        Checkpoint(path=Path("/proc/kept")).restore(new_sums(), fingerprint=RUN)


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
    checkpoint = Checkpoint(path=tmp_path / "kept", say=said.append)
    sums = new_sums()
    checkpoint.restore(sums, fingerprint=RUN)
    said.clear()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpmepf.artifacts.atomic_file.os.fsync", full)
    checkpoint.save(sums.checkpoint(), done=9)
    assert said == [f"the sums could not be kept in {tmp_path / 'kept'} (No space left on device); the run goes on"]
    assert (tmp_path / "kept").read_bytes() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


@pytest.mark.parametrize("name", ["kept", "kept[1]", "a**b"])
def test_deleting_takes_what_a_killed_process_left_beside_it_and_nothing_else(tmp_path: Path, name: str) -> None:
    others = {tmp_path / other for other in (f"{name}2", f".{name}.h5.0123456789abcdef.partial", f".{name}.x.partial")}
    for other in others:
        other.touch()
    keep(tmp_path / name)
    (tmp_path / f".{name}.0123456789abcdef.partial").write_bytes(b"private")
    checkpoint = Checkpoint(path=tmp_path / name)
    assert checkpoint.delete() == ""  # not ours before it is restored
    assert (tmp_path / name).exists()
    checkpoint.restore(new_sums(), fingerprint=RUN)
    assert checkpoint.delete() == ""
    assert set(tmp_path.iterdir()) == others
    assert checkpoint.delete() == ""


def test_what_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(path=tmp_path / "kept")
    checkpoint.restore(new_sums(), fingerprint=RUN)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", denied)
    assert f"delete {tmp_path / 'kept'}, which holds exact sums" in checkpoint.delete()


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


# Where it may lie


def place(file: Path, *, count: int = 0, rank: int = 0, data: Path | None = None, taken: tuple[Path, ...] = ()) -> Path:
    processes = Processes(rank=rank, count=count, local_rank=rank) if count else None
    return place_checkpoint(file, processes, data=data, taken=taken, say=pytest.fail).path


def test_each_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert place(tmp_path / "kept") == tmp_path / "kept"
    assert place(tmp_path / "kept", count=3, rank=2) == tmp_path / "kept.2"


@pytest.mark.parametrize("count", [0, 2])
def test_a_file_that_is_something_else_is_refused_also_under_the_name_that_a_process_gives_it(
    tmp_path: Path, count: int
) -> None:
    output = tmp_path / ("kept.1" if count else "kept")
    (tmp_path / "link").symlink_to(tmp_path)
    for file in (tmp_path / "kept", tmp_path / "link" / "kept", tmp_path / "folder" / ".." / "kept"):
        with pytest.raises(UsageError, match="something else"):
            place(file, count=count, taken=(output,))
    assert place(tmp_path / "kept", taken=(tmp_path / "kept.1",))


def test_the_registers_own_files_and_folder_are_refused(tmp_path: Path) -> None:
    for name in ("r.sqlite", "r.sqlite-journal", "r.sqlite-wal"):
        with pytest.raises(UsageError, match="something else"):
            place(tmp_path / "book" / name, taken=tuple(files_of(tmp_path / "book" / "r.sqlite")))
    with pytest.raises(UsageError, match="something else"):
        place(tmp_path / "book", taken=tuple(files_of(tmp_path / "book" / "r.sqlite")))


def test_a_file_among_the_data_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "a.png", tmp_path / "class" / "a"):
        with pytest.raises(UsageError, match="among the data"):
            place(file, data=tmp_path)


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="names no file"):
        place(Path(name), count=2)


@pytest.mark.parametrize(("kept", "count"), [("kept", 2), ("kept.0", 0), ("kept.2", 2)])
def test_sums_of_another_number_of_processes_are_not_left_lying(tmp_path: Path, kept: str, count: int) -> None:
    (tmp_path / kept).touch()
    with pytest.raises(UsageError, match="another number of processes"):
        place(tmp_path / "kept", count=count)
    assert place(tmp_path / "kept", count=3 if kept == "kept.2" else 0 if kept == "kept" else 1)
