"""The file: complete or absent, never over another, holding the allow-list and nothing else."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from artifact_examples import FEATURE_MAP, example_artifact, replace_text

from dpmepf.artifacts import atomic_file
from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.errors import (
    ArtifactError,
    ArtifactExistsError,
    ArtifactMissingError,
    ArtifactWriteError,
    ClassNamesError,
    InconsistentArtifactError,
    OutOfRangeError,
    OversizeError,
    ShapeError,
    TextError,
)
from dpmepf.artifacts.hdf5_file import read_artifact, write_artifact
from dpmepf.artifacts.hdf5_inspection import check_storage


@pytest.fixture(params=["nameless", "temporary name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of writing: without a name until the file is complete, as on Linux, and under a temporary one."""
    if request.param == "temporary name":
        monkeypatch.delattr(os, "O_TMPFILE")


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    artifact = example_artifact()
    write_artifact(tmp_path / "a.h5", artifact)
    read = read_artifact(tmp_path / "a.h5")
    np.testing.assert_array_equal(read.noisy_sums, artifact.noisy_sums)
    np.testing.assert_array_equal(read.noisy_counts, artifact.noisy_counts)
    assert (read.classes, read.feature_map, read.ledger) == (artifact.classes, FEATURE_MAP, artifact.ledger)


@pytest.mark.parametrize("dimension", [1, 2, 7, 5000])
def test_every_dimension_and_extreme_values_survive(tmp_path: Path, dimension: int) -> None:
    artifact = example_artifact(feature_dimension=dimension)
    limit = 2 ** (63 - artifact.ledger.coarsening_exponent)
    sums = np.array([[limit] * dimension, [-limit] * dimension, list(range(dimension))], dtype=np.int64)
    artifact = dataclasses.replace(artifact, noisy_sums=sums)
    write_artifact(tmp_path / "a.h5", artifact)
    np.testing.assert_array_equal(read_artifact(tmp_path / "a.h5").noisy_sums, sums)


def test_plain_h5py_reads_the_same_numbers_from_exactly_five_data_sets(tmp_path: Path) -> None:
    artifact = example_artifact()
    write_artifact(tmp_path / "a.h5", artifact)
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"ledger", "feature_map", "classes", "noisy_sums", "noisy_counts"}
        assert not file.attrs and not any(dataset.attrs for dataset in file.values())
        np.testing.assert_array_equal(file["noisy_sums"][:], artifact.noisy_sums)
        np.testing.assert_array_equal(file["noisy_counts"][:], artifact.noisy_counts)
        assert json.loads(file["ledger"][()]) == artifact.ledger.to_dict()
        assert json.loads(file["classes"][()]) == list(artifact.classes)


def test_one_number_for_the_pooling_of_all_layers_is_still_read(tmp_path: Path) -> None:
    artifact, path = example_artifact(), tmp_path / "a.h5"
    write_artifact(path, artifact)
    text = json.dumps(json.loads(artifact.feature_map.to_json()) | {"pooling": 4}, sort_keys=True)
    replace_text(path, "feature_map", text)
    assert read_artifact(path).feature_map == artifact.feature_map
    replace_text(path, "feature_map", text.replace('"pooling": 4', '"pooling":4'))
    with pytest.raises(TextError, match="feature_map"):
        read_artifact(path)


def test_whole_numbers_in_a_feature_map_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    whole = dataclasses.replace(FEATURE_MAP, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1))
    write_artifact(tmp_path / "a.h5", dataclasses.replace(example_artifact(), feature_map=whole))
    assert read_artifact(tmp_path / "a.h5").feature_map.pixel_std == (1.0, 1.0, 1.0)


def test_the_same_artifact_gives_the_same_bytes_at_another_time(tmp_path: Path) -> None:
    artifact = example_artifact()
    write_artifact(tmp_path / "a.h5", artifact)
    time.sleep(1.1)
    write_artifact(tmp_path / "b.h5", artifact)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_feature_units_and_record_units_undo_lattice_and_coarsening() -> None:
    artifact = example_artifact()
    ledger = artifact.ledger
    step = 2.0**ledger.coarsening_exponent
    np.testing.assert_allclose(artifact.feature_sums(), artifact.noisy_sums * step / 2.0**26, rtol=1e-15)
    np.testing.assert_allclose(artifact.counts(), artifact.noisy_counts * step / (2**26 // 10), rtol=1e-15)
    assert artifact.noise_std_features == pytest.approx(ledger.sigma / 2**26, rel=2e-4)
    assert artifact.noise_std_features > ledger.sigma / 2**26  # coarsening adds noise
    assert artifact.noise_std_counts == pytest.approx(10 * artifact.noise_std_features, rel=1e-6)


def test_the_arrays_cannot_be_written_to() -> None:
    artifact = example_artifact()
    with pytest.raises(ValueError, match="read-only"):
        artifact.noisy_sums[0, 0] = 0


@pytest.mark.usefixtures("way")
def test_an_existing_file_is_kept_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("precious")
    with pytest.raises(ArtifactExistsError, match="--force") as caught:
        write_artifact(path, example_artifact())
    assert caught.value.exit_code == 2
    assert path.read_text() == "precious"
    write_artifact(path, example_artifact(), force=True)
    read_artifact(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "a.h5").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactExistsError, match="exists already"):
        write_artifact(tmp_path / "a.h5", example_artifact())
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    path = tmp_path / "a.h5"
    real_fsync, real_link = os.fsync, os.link

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        path.write_text("another's")

    def link(*arguments: Any, **options: Any) -> None:
        if not hard_links:
            raise OSError(errno.EPERM, "no hard links here")
        real_link(*arguments, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ArtifactExistsError, match="meanwhile"):
        write_artifact(path, example_artifact())
    assert path.read_text() == "another's"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
def test_without_hard_links_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOTSUP, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    write_artifact(tmp_path / "a.h5", example_artifact())
    read_artifact(tmp_path / "a.h5")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="nameless files are Linux's")
def test_nothing_has_a_name_before_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        names.append([entry.name for entry in tmp_path.iterdir()])

    monkeypatch.setattr(os, "fsync", fsync)
    write_artifact(tmp_path / "a.h5", example_artifact())
    assert names == [[], ["a.h5"]]  # the file's flush, then its folder's


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("call", ["fsync", "replace_or_link"])
def test_a_full_disk_leaves_nothing_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, call: str
) -> None:
    path = tmp_path / "a.h5"
    if force:
        path.write_text("precious")
    before = [entry.name for entry in tmp_path.iterdir()]

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
        monkeypatch.setattr(os, "link", full)
    with pytest.raises(ArtifactWriteError, match="No space left"):
        write_artifact(path, example_artifact(), force=force)
    assert [entry.name for entry in tmp_path.iterdir()] == before
    assert not force or path.read_text() == "precious"


def test_a_real_write_limit_leaves_nothing(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    program = (
        "from pathlib import Path; from dpmepf.artifacts.atomic_file import write_atomically; "
        f"write_atomically(Path({str(tmp_path / 'a.h5')!r}), bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-c", program], preexec_fn=limit, capture_output=True, text=True)
    assert "ArtifactWriteError" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_a_folder_as_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError, match="does not exist"):
        write_artifact(tmp_path / "no" / "a.h5", example_artifact())
    with pytest.raises(ArtifactExistsError, match="folder"):
        write_artifact(tmp_path, example_artifact(), force=True)


@pytest.mark.usefixtures("way")
def test_the_file_has_the_users_normal_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_file.write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_an_artifact_that_its_audit_would_reject_is_not_written(tmp_path: Path) -> None:
    artifact = example_artifact()
    forged = dataclasses.replace(artifact, ledger=dataclasses.replace(artifact.ledger, epsilon=0.5))
    with pytest.raises(InconsistentArtifactError, match="epsilon"):
        write_artifact(tmp_path / "a.h5", forged)
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_a_file_to_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.h5", tmp_path):
        with pytest.raises(ArtifactMissingError) as caught:
            read_artifact(path)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "classes",
    [("a", "a", "b"), ("", "b", "c"), ("../up", "b", "c"), ("a\x1b[2J", "b", "c"), ("\u202eevil", "b", "c")],
)
def test_class_names_that_repeat_or_could_harm_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(ClassNamesError) as caught:
        example_artifact(classes=classes)
    assert str(caught.value).isprintable()


def test_arrays_that_do_not_fit_the_classes_are_refused() -> None:
    artifact = example_artifact()
    for change in (
        {"noisy_counts": artifact.noisy_counts[:2]},
        {"noisy_sums": artifact.noisy_sums[:2]},
        {"noisy_sums": artifact.noisy_sums[0]},
        {"noisy_sums": artifact.noisy_sums.astype(float)},
        {"noisy_sums": artifact.noisy_sums[:, :0]},
    ):
        with pytest.raises(ShapeError, match="noisy_"):
            dataclasses.replace(artifact, **change)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["noisy_counts", "noisy_sums"])
def test_values_that_no_64_bit_sum_can_be_are_refused(name: str, sign: int) -> None:
    artifact = example_artifact()
    array = np.zeros_like(getattr(artifact, name))
    array.flat[-1] = sign * (2 ** (63 - artifact.ledger.coarsening_exponent) + 1)
    with pytest.raises(OutOfRangeError, match=name):
        dataclasses.replace(artifact, **{name: array})


def test_more_numbers_than_the_limit_are_refused() -> None:
    artifact: Artifact = example_artifact()
    huge = np.broadcast_to(np.int64(0), (3, 2**22 + 1))
    with pytest.raises(OversizeError, match="limit"):
        dataclasses.replace(artifact, noisy_sums=huge)


def test_an_hdf5_that_cannot_say_where_rows_lie_is_named() -> None:
    file: Any = {"noisy_sums": SimpleNamespace(id=object())}
    with pytest.raises(ArtifactError, match=r"HDF5 \d.*install h5py"):
        check_storage(file)
