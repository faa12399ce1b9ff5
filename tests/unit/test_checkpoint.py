"""The file with the exact sums of a run that is not finished: the owner's alone, of one run only, exact."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from dpmepf.artifacts.register import files_of
from dpmepf.embed.checkpoint import Checkpoint, CheckpointError
from dpmepf.embed.checkpoint_lock import Lock, lock_file
from dpmepf.embed.checkpoint_place import place_checkpoint
from dpmepf.embed.distributed import Processes
from dpmepf.embed.summing import ClassSums
from dpmepf.shared.errors import UsageError

RUN, ANOTHER_RUN = bytes(range(32)), bytes(32)
PROBE, ANOTHER_PROBE = bytes(range(1, 33)), bytes(range(2, 34))
PLACES = 100


def new_sums(unit: str = "one image") -> ClassSums:
    return ClassSums(class_count=3, dimension=5, non_negative=False, unit_of_privacy=unit)


def keep(file: Path, *, images: int = 7, unit: str = "one image", fingerprint: bytes = RUN) -> np.ndarray:
    """Sum some images and keep the sums after them; return the totals."""
    sums, random = new_sums(unit), np.random.default_rng(0)
    checkpoint = Checkpoint(path=file)
    checkpoint.restore(new_sums(unit), fingerprint=fingerprint, places=PLACES, skipping=True)
    features = random.standard_normal((images, 5)).astype(np.float32)
    sums.add(features, random.integers(0, 3, images), np.arange(images) if unit == "one person" else None)
    part = sums.checkpoint()
    checkpoint.require_same_features(PROBE)
    checkpoint.save(part, done=images + 2)
    return part.totals


@pytest.mark.parametrize("unit", ["one image", "one person"])
@pytest.mark.parametrize("images", [0, 7])
def test_what_is_kept_comes_back(tmp_path: Path, unit: str, images: int) -> None:
    totals = keep(tmp_path / "kept", unit=unit, images=images)
    sums = new_sums(unit)
    assert Checkpoint(path=tmp_path / "kept").restore(sums, fingerprint=RUN, places=PLACES, skipping=True) == images + 2
    part = sums.hand_over(process=1)
    assert np.array_equal(part.totals, totals)
    assert (part.images, part.persons) == (images, (0, images - 1) if images and unit == "one person" else None)


def test_without_a_file_a_run_begins_at_the_beginning_and_begins_one(tmp_path: Path) -> None:
    sums, said = new_sums(), []
    assert (
        Checkpoint(path=tmp_path / "kept", say=said.append).restore(sums, fingerprint=RUN, places=PLACES, skipping=True)
        == 0
    )
    assert sums.hand_over(process=1).images == 0
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600
    assert (
        Checkpoint(path=tmp_path / "kept", say=said.append).restore(
            new_sums(), fingerprint=RUN, places=PLACES, skipping=True
        )
        == 0
    )
    assert [sentence.split()[0] for sentence in said] == ["exact", "going"]


def test_where_others_would_be_able_to_read_it_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without permissions."""
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777, **more: real(path, flags, 0o755, **more))
    with pytest.raises(CheckpointError, match="others can read it"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_said_before_any_image_is_read() -> None:
    with pytest.raises(CheckpointError, match="cannot be locked"):
        Checkpoint(path=Path("/proc/kept")).restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


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
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


def test_the_sums_of_another_run_are_refused_and_left_alone(tmp_path: Path) -> None:
    keep(tmp_path / "kept", fingerprint=ANOTHER_RUN)
    content = (tmp_path / "kept").read_bytes()
    with pytest.raises(CheckpointError, match="another run"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    assert (tmp_path / "kept").read_bytes() == content


def test_sums_of_features_that_are_computed_otherwise_are_refused_and_left_alone(tmp_path: Path) -> None:
    """Those of a run that has no sum yet are anybody's."""
    first = Checkpoint(path=tmp_path / "kept")
    first.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    first.let_go()
    here = Checkpoint(path=tmp_path / "kept")
    here.restore(sums := new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    here.require_same_features(PROBE)
    here.require_same_features(PROBE)
    sums.add(np.ones((2, 5), np.float32), np.zeros(2, np.int64))
    here.save(sums.checkpoint(), done=2)
    here.let_go()
    content = (tmp_path / "kept").read_bytes()
    elsewhere = Checkpoint(path=tmp_path / "kept")
    assert elsewhere.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True) == 2
    with pytest.raises(CheckpointError, match="computes otherwise: go on where it was begun"):
        elsewhere.require_same_features(ANOTHER_PROBE)
    elsewhere.let_go()
    assert (tmp_path / "kept").read_bytes() == content
    again = Checkpoint(path=tmp_path / "kept")
    again.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    again.require_same_features(PROBE)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    keep(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint(path=tmp_path / "link").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"no file|Is a directory"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


def test_a_missing_folder_is_said_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint(path=tmp_path / "none" / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


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
            Checkpoint(path=file).restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


@pytest.mark.parametrize("change", [lambda a: {**a, "more": a["totals"]}, lambda a: {"totals": a["totals"]}])
def test_another_content_is_refused(tmp_path: Path, change: Callable[[dict], dict]) -> None:
    keep(tmp_path / "kept")
    (tmp_path / "kept").write_bytes(save(change(load((tmp_path / "kept").read_bytes()))))
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


def test_a_disk_that_is_full_is_said_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path / "kept")
    content, said = (tmp_path / "kept").read_bytes(), []
    checkpoint = Checkpoint(path=tmp_path / "kept", warn=said.append)
    sums = new_sums()
    checkpoint.restore(sums, fingerprint=RUN, places=PLACES, skipping=True)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    sentence = f"the sums could not be kept in {tmp_path / 'kept'} (No space left on device); the run goes on"
    for said_so_far in (1, 1):  # again and again, but once
        with monkeypatch.context() as disk:
            disk.setattr("dpmepf.artifacts.atomic_file.os.fsync", full)
            checkpoint.save(sums.checkpoint(), done=9)
        assert said == [sentence] * said_so_far
        assert (tmp_path / "kept").read_bytes() == content
        assert set(tmp_path.iterdir()) == {tmp_path / "kept", lock_file(tmp_path / "kept")}
    checkpoint.save(sums.checkpoint(), done=9)
    with monkeypatch.context() as disk:
        disk.setattr("dpmepf.artifacts.atomic_file.os.fsync", full)
        checkpoint.save(sums.checkpoint(), done=9)
    assert said == [sentence] * 2


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
    checkpoint.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    assert checkpoint.delete() == ""
    assert set(tmp_path.iterdir()) == others
    assert checkpoint.delete() == ""


def test_what_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(path=tmp_path / "kept")
    checkpoint.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)

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
    checkpoint.restore(sums, fingerprint=RUN, places=PLACES, skipping=True)
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


@pytest.mark.parametrize(("done", "places"), [(-7, 100), (0, 100), (6, 100), (8, 7)])
def test_places_that_the_run_does_not_have_or_that_hold_fewer_images_are_refused(
    tmp_path: Path, done: int, places: int
) -> None:
    """Whoever goes on from them would sum images twice."""
    sums, checkpoint = new_sums(), Checkpoint(path=tmp_path / "kept")
    checkpoint.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    sums.add(np.ones((7, 5), np.float32), np.zeros(7, np.int64))
    checkpoint.require_same_features(PROBE)
    checkpoint.save(sums.checkpoint(), done=done)
    checkpoint.let_go()
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=places, skipping=True)


def test_sums_of_features_that_were_compared_with_none_are_refused(tmp_path: Path) -> None:
    sums, checkpoint = new_sums(), Checkpoint(path=tmp_path / "kept")
    checkpoint.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    sums.add(np.ones((7, 5), np.float32), np.zeros(7, np.int64))
    checkpoint.save(sums.checkpoint(), done=7)
    checkpoint.let_go()
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)


def test_a_run_that_leaves_nothing_out_does_not_go_on_from_sums_that_do(tmp_path: Path) -> None:
    keep(tmp_path / "kept")  # 7 images at 9 places
    with pytest.raises(CheckpointError, match="--skip-unreadable"):
        Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=False)
    assert Checkpoint(path=tmp_path / "kept").restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True) == 9


# One run at a time


def restored(file: Path, fingerprint: bytes = RUN) -> Checkpoint:
    checkpoint = Checkpoint(path=file)
    checkpoint.restore(new_sums(), fingerprint=fingerprint, places=PLACES, skipping=True)
    return checkpoint


@pytest.mark.parametrize("end", [Checkpoint.delete, Checkpoint.let_go])
def test_a_second_run_is_refused_until_the_first_ends(tmp_path: Path, end: Callable[[Checkpoint], object]) -> None:
    first = restored(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path)
    for saved in range(2):  # which makes it another file
        content = (tmp_path / "kept").read_bytes()
        for file in (tmp_path / "kept", tmp_path / "link" / "kept"):
            with pytest.raises(CheckpointError, match=f"another run is keeping its sums in {file}: wait"):
                restored(file)
        assert (tmp_path / "kept").read_bytes() == content
        first.save(new_sums().checkpoint(), done=saved)
    end(first)
    assert not lock_file(tmp_path / "kept").exists()
    second = restored(tmp_path / "kept")
    end(first)  # once more, which is not its any more
    with pytest.raises(CheckpointError, match="another run is keeping"):
        restored(tmp_path / "kept")
    assert second.delete() == ""


def test_files_of_several_processes_are_locked_each_for_itself(tmp_path: Path) -> None:
    kept = [restored(tmp_path / f"kept.{rank}") for rank in range(3)]
    assert [checkpoint.delete() for checkpoint in kept] == [""] * 3
    assert list(tmp_path.iterdir()) == []


def test_who_is_refused_leaves_no_lock(tmp_path: Path) -> None:
    keep(tmp_path / "kept", fingerprint=ANOTHER_RUN)
    refused = Checkpoint(path=tmp_path / "kept")
    with pytest.raises(CheckpointError, match="another run"):
        refused.restore(new_sums(), fingerprint=RUN, places=PLACES, skipping=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
    restored(tmp_path / "kept", fingerprint=ANOTHER_RUN)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from dpmepf.embed.checkpoint_lock import Lock
lock = Lock(Path(sys.argv[1]))
if os.fork() == 0:  # as one that decodes images, and outlives the one that is killed
    print(os.getpid(), flush=True)
    time.sleep(100)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_killed_run_does_not_remain_even_if_its_workers_do(tmp_path: Path) -> None:
    lock = lock_file(tmp_path / "kept")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        try:
            with pytest.raises(CheckpointError, match="another run is keeping"):
                restored(tmp_path / "kept")
            run.stdin.write("\n")
            run.stdin.flush()
            assert run.wait() == -signal.SIGKILL
            assert stat.S_IMODE(lock.stat().st_mode) == 0o600
            assert restored(tmp_path / "kept").delete() == ""
        finally:
            os.kill(worker, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_run_that_ends_while_the_next_begins_is_not_had_by_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next opens the file that the one before removes a moment later."""
    file, real = tmp_path / "lock", fcntl.flock
    ending = [Lock(file)]

    def end_first(descriptor: int, operation: int) -> None:
        if ending:
            ending.pop().let_go()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", end_first)
    lock = Lock(file)
    assert file.exists()
    with pytest.raises(BlockingIOError):
        Lock(file)
    lock.let_go()
    assert not file.exists()


def make_link(file: Path) -> None:
    file.with_name("other").touch()
    file.symlink_to(file.with_name("other"))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda file: file.write_text("mine"), make_link])
def test_what_is_no_lock_is_left_alone(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(lock_file(tmp_path / "kept"))
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="cannot be locked"):
        restored(tmp_path / "kept")
    assert set(tmp_path.iterdir()) == before


# Where it may lie


def place(file: Path, *, count: int = 0, rank: int = 0, data: Path | None = None, taken: tuple[Path, ...] = ()) -> Path:
    processes = Processes(rank=rank, count=count, local_rank=rank) if count else None
    return place_checkpoint(file, processes, data=data, taken=taken, say=pytest.fail, warn=pytest.fail).path


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


@pytest.mark.parametrize("count", [0, 2])
def test_the_name_of_its_lock_is_refused_for_anything_else(tmp_path: Path, count: int) -> None:
    output = tmp_path / (".kept.1.lock" if count else ".kept.lock")
    with pytest.raises(UsageError, match="something else"):
        place(tmp_path / "kept", count=count, taken=(output,))


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
