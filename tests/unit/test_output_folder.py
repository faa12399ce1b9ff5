"""The output folder appears complete or not at all, and nobody else's files are lost."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpmepf.shared.errors import UsageError
from dpmepf.shared.output_file import replacing
from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE
from dpmepf.synthesize.output_folder import MARKER_FILE, RUN_FILE, OutputFolder


def output_in(tmp_path: Path) -> OutputFolder:
    return OutputFolder(path=tmp_path / "deep" / "synthetic")


def finished(output: OutputFolder, content: str = "old") -> None:
    folder = output.begin(keep_checkpoint=False)
    (folder / RUN_FILE).write_text(content)
    (folder / CHECKPOINT_FILE).write_text("checkpoint " + content)
    output.finish()


def test_the_folder_appears_only_when_finished(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    output.check(resume=False, force=False)
    folder = output.begin(keep_checkpoint=False)
    (folder / RUN_FILE).write_text("{}")
    assert not output.path.exists()
    output.finish()
    assert [path.name for path in output.path.iterdir()] == [RUN_FILE]
    assert [path.name for path in output.path.parent.iterdir()] == ["synthetic"]


def test_an_existing_result_is_refused_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    finished(output)
    with pytest.raises(UsageError, match="replace it with --force"):
        output.check(resume=False, force=False)
    output.check(resume=False, force=True)
    finished(output, "new")
    assert (output.path / RUN_FILE).read_text() == "new"
    assert [path.name for path in output.path.parent.iterdir()] == ["synthetic"]


def test_a_failed_run_with_force_leaves_the_earlier_result(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    finished(output)
    output.begin(keep_checkpoint=False)
    output.abandon()
    assert (output.path / RUN_FILE).read_text() == "old"
    assert not output.partial.exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_somebody_elses_files_are_never_replaced(tmp_path: Path, force: bool, resume: bool) -> None:
    output = output_in(tmp_path)
    for folder in (output.path, output.partial):
        folder.mkdir(parents=True)
        (folder / "thesis.txt").write_text("years of work")
        with pytest.raises(UsageError, match="did not write"):
            output.check(resume=resume, force=force)
        (folder / "thesis.txt").unlink()
    output.check(resume=False, force=False)  # an empty folder is nobody's


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize(
    "name", ["artifact.h5", "scores.json", ".notes.7.tmp", "selected", "images/labels.csv", "images/cat/mine.png"]
)
def test_what_somebody_put_beside_a_result_is_not_lost_with_it(tmp_path: Path, name: str, unfinished: bool) -> None:
    output = output_in(tmp_path)
    finished(output)
    folder = output.begin(keep_checkpoint=True) if unfinished else output.path
    if unfinished:
        output.abandon()
    (folder / "images" / "cat").mkdir(parents=True)
    for ours in ("images/cat/000123.png", "images/._cat", "gen.npz", ".DS_Store", f".{CHECKPOINT_FILE}.123.tmp"):
        (folder / ours).touch()
    output.check(resume=False, force=True)
    (folder / name).touch()
    for resume in (True, False):
        with pytest.raises(UsageError, match=f"not write, '{name}', and would not keep: move it"):
            output.check(resume=resume, force=not resume)
    (folder / "zebra.txt").touch()
    with pytest.raises(UsageError, match="' and 1 more, and would not keep"):
        output.check(resume=True, force=False)


def test_what_somebody_put_there_meanwhile_is_kept(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    finished(output)
    output.check(resume=False, force=True)
    (output.begin(keep_checkpoint=False) / RUN_FILE).write_text("new")
    (output.path / "notes.txt").write_text("years of work")
    (output.path / "images" / "cat").mkdir(parents=True)
    (output.path / "images" / "cat" / "mine.png").touch()
    (output.partial / "notes.txt").write_text("others")
    output.finish()
    assert {path.name for path in output.path.iterdir()} == {RUN_FILE, "notes.txt", "notes.txt.before", "images"}
    assert (output.path / "images" / "cat" / "mine.png").is_file()
    assert (output.path / "notes.txt").read_text() == "others"
    (output.path / "notes.txt.before").rename(output.path / "notes.txt")
    output.begin(keep_checkpoint=False)
    (output.partial / "notes.txt").write_text("more work")
    output.abandon()
    assert (output.path / "notes.txt").read_text() == "years of work"
    assert (output.partial / "notes.txt").read_text() == "more work"


def test_a_result_that_came_to_be_there_meanwhile_is_not_replaced_unasked(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    output.check(resume=False, force=False)
    (output.begin(keep_checkpoint=False) / CHECKPOINT_FILE).write_text("ours")
    output.path.mkdir()
    (output.path / RUN_FILE).write_text("somebody's")
    with pytest.raises(UsageError, match="has come to hold files meanwhile: move them, then go on with --resume"):
        output.finish()
    output.abandon()
    assert (output.path / RUN_FILE).read_text() == "somebody's"
    assert (output.partial / CHECKPOINT_FILE).read_text() == "ours"


def test_what_was_put_there_before_the_work_begins_is_not_lost(tmp_path: Path) -> None:
    """Between looking and beginning, opening images and compiling may take minutes."""
    output = output_in(tmp_path)
    output.begin(keep_checkpoint=False)
    (output.partial / CHECKPOINT_FILE).write_text("checkpoint")
    (output.partial / "images").symlink_to(tmp_path)
    output.abandon()
    output.check(resume=True, force=False)
    (output.partial / "notes.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"'notes\.txt', and would not keep"):
        output.begin(keep_checkpoint=True)
    (output.partial / "notes.txt").unlink()
    assert {path.name for path in output.begin(keep_checkpoint=True).iterdir()} == {MARKER_FILE, CHECKPOINT_FILE}
    assert tmp_path.is_dir()


def test_a_result_that_a_killed_process_was_replacing_gets_its_name_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = output_in(tmp_path)
    finished(output)
    output.check(resume=False, force=True)
    (output.begin(keep_checkpoint=False) / RUN_FILE).write_text("new")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path == output.partial:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            output.finish()
    output.abandon()
    assert not output.path.exists()
    named_alike = OutputFolder(path=output.path.with_name(output.path.name.partition("h")[0]))
    output.path.with_name(f".{named_alike.path.name}.other.abc.replaced").mkdir()
    for folder in (named_alike, output):
        folder.require_unused()
        folder.restore()
    assert (output.path / RUN_FILE).read_text() == "old"
    assert not named_alike.path.exists()  # what another output left is not its


@pytest.mark.parametrize("force", [False, True])
def test_a_file_or_link_in_the_way_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="not a folder"):
            OutputFolder(path=tmp_path / name).check(resume=False, force=force)


def test_an_interrupted_run_is_refused_unless_resumed_or_forced(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    (output.begin(keep_checkpoint=False) / CHECKPOINT_FILE).write_text("checkpoint")
    output.abandon()
    assert output.checkpoint_folder() == output.partial
    with pytest.raises(UsageError, match="interrupted run"):
        output.check(resume=False, force=False)
    output.check(resume=False, force=True)
    output.check(resume=True, force=False)


def test_resuming_keeps_the_checkpoint_and_drops_half_a_data_set(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    folder = output.begin(keep_checkpoint=False)
    (folder / CHECKPOINT_FILE).write_text("checkpoint")
    (folder / "images" / "0").mkdir(parents=True)
    (folder / "images" / "0" / "000000.png").write_text("half")
    (folder / "gen.npz").write_text("half")
    output.abandon()
    assert (output.begin(keep_checkpoint=True) / CHECKPOINT_FILE).read_text() == "checkpoint"
    assert not (folder / "images").exists()
    assert not (folder / "gen.npz").exists()


def test_a_finished_run_can_be_resumed_from_its_checkpoint(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    finished(output)
    output.check(resume=True, force=False)
    assert output.checkpoint_folder() == output.path
    assert (output.begin(keep_checkpoint=True) / CHECKPOINT_FILE).read_text() == "checkpoint old"
    (output.path / CHECKPOINT_FILE).unlink()
    (output.partial / CHECKPOINT_FILE).unlink()
    with pytest.raises(UsageError, match=r"no checkpoint\.pt"):
        output.check(resume=True, force=False)


def test_resuming_where_there_is_nothing_begins_anew(tmp_path: Path) -> None:
    output = output_in(tmp_path)
    output.check(resume=True, force=False)
    assert output.checkpoint_folder() is None


HOLDING = """
import sys; from pathlib import Path; from dpmepf.synthesize.output_folder import OutputFolder
output = OutputFolder(path=Path(sys.argv[1])); output.begin(keep_checkpoint=False)
print("begun", flush=True); sys.stdin.read()
"""


@pytest.mark.parametrize("keep_checkpoint", [False, True])
def test_a_folder_that_another_run_is_filling_is_left_alone(tmp_path: Path, keep_checkpoint: bool) -> None:
    """Also when that has no checkpoint yet, and with --resume or --force when it has; not after it was killed."""
    output = OutputFolder(path=tmp_path / "synthetic")
    output.require_unused()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(output.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "begun\n"
        (output.partial / CHECKPOINT_FILE).write_text("the other's")
        with pytest.raises(UsageError, match="another dpmepf-synth is writing to"):
            output.require_unused()
        with pytest.raises(UsageError, match="another dpmepf-synth is writing to"):
            output.begin(keep_checkpoint=keep_checkpoint)
        output.abandon()
        assert (output.partial / CHECKPOINT_FILE).read_text() == "the other's"
        other.kill()
    output.require_unused()
    output.begin(keep_checkpoint=keep_checkpoint)
    assert (output.partial / CHECKPOINT_FILE).is_file() == keep_checkpoint


@pytest.mark.parametrize("place", ["synthetic", "synthetic/images", "synthetic.partial/gen.npz", "link/images"])
def test_what_a_run_reads_is_not_where_it_writes(place: str, tmp_path: Path) -> None:
    (tmp_path / "synthetic" / "images").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "synthetic")
    output = OutputFolder(path=tmp_path / "synthetic")
    output.require_apart([tmp_path / "synthetic2", tmp_path / "photos.zip"])
    with pytest.raises(UsageError, match="is read by this run, which replaces"):
        output.require_apart([tmp_path / "photos.zip", tmp_path / place])


def test_a_file_system_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    output = output_in(tmp_path)
    (output.begin(keep_checkpoint=False) / CHECKPOINT_FILE).write_text("checkpoint")
    output.abandon()
    output.require_unused()
    output.check(resume=True, force=False)
    output.begin(keep_checkpoint=True)
    output.finish()
    assert [path.name for path in output.path.parent.iterdir()] == ["synthetic"]


def test_a_folder_that_cannot_be_named_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the path became a mount point meanwhile: the work is not lost, nor the result that was to be replaced."""
    output = output_in(tmp_path)
    finished(output)
    output.check(resume=False, force=True)
    (output.begin(keep_checkpoint=False) / CHECKPOINT_FILE).write_text("new")
    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if path == output.partial:
            raise OSError(errno.EBUSY, "busy")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", busy)
        with pytest.raises(OSError, match="busy"):
            output.finish()
    output.abandon()
    assert (output.path / RUN_FILE).read_text() == "old"
    output.check(resume=True, force=False)
    assert (output.begin(keep_checkpoint=True) / CHECKPOINT_FILE).read_text() == "new"
    output.finish()
    assert [path.name for path in output.path.iterdir()] == [CHECKPOINT_FILE]


def test_a_checkpoint_that_cannot_be_copied_does_not_hide_the_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = output_in(tmp_path)
    finished(output)

    def half(source: Path, target: Path) -> None:
        target.write_text("check")
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", half)
        with pytest.raises(OSError, match="full"):
            output.begin(keep_checkpoint=True)
    output.abandon()
    assert output.checkpoint_folder() == output.path
    assert not output.partial.exists()


def test_what_can_never_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="dangling is not a folder"):
        OutputFolder(path=tmp_path / "dangling" / "synthetic").check(resume=False, force=False)
    with pytest.raises(UsageError, match="file is not a folder"):
        OutputFolder(path=tmp_path / "file" / "synthetic").check(resume=False, force=False)
    with monkeypatch.context() as mounted, pytest.raises(UsageError, match="mount point"):
        mounted.setattr(os.path, "ismount", lambda path: True)
        output_in(tmp_path).check(resume=False, force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # tests may run as root
    with pytest.raises(UsageError, match="nothing may be written"):
        output_in(tmp_path).check(resume=False, force=False)


def test_a_replaced_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "before"
    with replacing(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
