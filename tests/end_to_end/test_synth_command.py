"""`dpmepf-synth` as a user meets it: a folder with everything, or one sentence and nothing that looks finished."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

import click
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from PIL import Image
from safetensors.torch import load_file, save_file

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.audit_command import main as audit
from dpmepf.artifacts.hdf5_file import read_artifact, write_artifact
from dpmepf.artifacts.ledger import plan_release
from dpmepf.artifacts.merging import merge_artifacts
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.signature import sign_file
from dpmepf.shared.encoders import BUILTIN_WEIGHTS
from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.image_errors import WorkerDiedError
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.precision import autocast_dtype
from dpmepf.synthesize import command, labelling, public_images, sampling, settings, synthesis, training
from dpmepf.synthesize.command import main
from dpmepf.synthesize.generator import load_generator
from dpmepf.synthesize.output_folder import OutputFolder
from dpmepf.synthesize.probe import draw_probe
from dpmepf.synthesize.variation import CHANGES

CLASSES = ("0", "T-shirt_top")
QUICK = ("--steps", 3, "--batch-size", 4, "--samples", 5, "--device", "cpu")
FILES = {
    "checkpoint.pt",
    "curve.png",
    "generator.json",
    "generator.safetensors",
    "preview.png",
    "report.html",
    "run.json",
}


@pytest.fixture(autouse=True)
def _learn_from_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "IMAGES", 100)
    monkeypatch.setattr(labelling, "IMAGES_PER_STEP", 40)
    monkeypatch.setattr(training, "DENOISING_IMAGES", 40)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with the built-in encoder, as the custodian's side writes it; its images are random."""
    return write_release(tmp_path_factory.mktemp("release") / "artifact.h5", CLASSES)


def write_release(path: Path, classes: tuple[str, ...], **changes: object) -> Path:
    description = dataclasses.replace(describe_feature_map(resolution=28, channels=1), **changes)
    feature_map = build_feature_map(description)
    ledger = plan_release(
        epsilon=2.0,
        delta=1e-5,
        relation=NeighbouringRelation.ADD_OR_REMOVE_ONE,
        feature_dimension=feature_map.dimension,
        class_count=len(classes),
        non_negative_features=True,
        dataset_name="random <b>images</b>",
    )
    with torch.no_grad():
        images = torch.rand(len(classes), 1, 28, 28, generator=torch.Generator().manual_seed(0))
        sums = 300 * feature_map(images).double().numpy()
    random, step = np.random.default_rng(0), 2.0**ledger.coarsening_exponent
    noisy_sums = sums * 2.0**ledger.lattice_exponent + ledger.sigma * random.standard_normal(sums.shape)
    noisy_counts = np.resize([300.0, 100.0], len(classes)) * ledger.count_weight_lattice
    write_artifact(
        path,
        Artifact(
            noisy_sums=np.rint(noisy_sums / step).astype(np.int64),
            noisy_counts=np.rint(noisy_counts / step).astype(np.int64),
            classes=classes,
            feature_map=description,
            ledger=ledger,
        ),
    )
    return path


@pytest.fixture(autouse=True)
def recalibrate_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RECALIBRATION_IMAGES", 8)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_sentence(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last


def test_a_merged_artifact_is_learned_from_and_every_release_named(artifact: Path, tmp_path: Path) -> None:
    north = read_artifact(artifact)
    ledger = dataclasses.replace(north.ledger, release_id=str(uuid.uuid4()), dataset_name="south")
    merged = merge_artifacts([("north", north), ("south", dataclasses.replace(north, ledger=ledger))])
    write_artifact(tmp_path / "all.h5", merged)
    result = run(tmp_path / "all.h5", "--output", tmp_path / "out", "--json", *QUICK)
    assert result.exit_code == 0, result.output

    record = json.loads(result.stdout)
    identifiers = [north.ledger.release_id, ledger.release_id]
    assert [release["release_id"] for release in record["artifact"]["releases"]] == identifiers
    assert record["artifact"]["dataset_name"] == "random <b>images</b> + south"
    assert (record["artifact"]["epsilon"], record["artifact"]["delta"]) == (2.0, 1e-5)
    assert [entry["noisy_count"] for entry in record["classes"]] == pytest.approx([600, 200], rel=0.01)
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert all(identifier in report for identifier in identifiers)
    assert "The 2 releases these images come from are together" in report
    assert "if no image is in two of them" in result.stderr


def test_training_and_labels_have_the_same_probe(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[torch.Tensor] = []
    with_probe, learn = training.with_probe, synthesis.learn_discriminant

    def train_with(targets: Any, probe: torch.Tensor) -> Any:
        probes.append(probe)
        return with_probe(targets, probe)

    def learn_with(*arguments: Any, probe: torch.Tensor, **keywords: Any) -> Any:
        probes.append(probe)
        return learn(*arguments, probe=probe, **keywords)

    for module in (training, synthesis):
        monkeypatch.setattr(module, "probe_for", draw_probe)  # though noise hides what the classes here differ by
    monkeypatch.setattr(training, "with_probe", train_with)
    monkeypatch.setattr(synthesis, "learn_discriminant", learn_with)
    assert run(artifact, "--output", tmp_path / "out", "--seed", "7", *QUICK).exit_code == 0
    assert len(probes) == 2
    assert float(probes[0].std()) > 0
    torch.testing.assert_close(*probes)


def test_a_run_leaves_everything_that_is_promised(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpmepf.synthesize.labelling.INFORMATIVE", 1e9)  # labels are corrected, whatever the scores
    output = tmp_path / "out"
    result = run(artifact, "--output", output, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    assert {path.name for path in output.iterdir()} == FILES | {"images"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    counted = {path.name: len(list(path.iterdir())) for path in (output / "images").iterdir()}
    assert counted == {"0": 4, "T-shirt_top": 1}  # 300 and 100 records
    with Image.open(output / "images" / "0" / "000003.png") as picture:
        assert (picture.size, picture.mode) == ((28, 28), "L")

    record = json.loads(result.stdout)
    assert record == json.loads((output / "run.json").read_text("utf-8"))
    assert record["artifact"]["sha256"] == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert (record["artifact"]["epsilon"], record["artifact"]["delta"]) == (2.0, 1e-5)
    assert record["settings"]["steps"] == len(record["losses"]["every_step"]) == 3
    assert record["output"] == {"format": "folder", "images": 5, "relabelled": True}
    assert record["settings"]["vary"] is False
    assert record["generator"]["random_changes"] is None
    generator, classes = load_generator(output)
    assert classes == CLASSES
    assert generator.configuration.resolution == 28

    for name in ("preview.png", "curve.png", "report.html", "images"):
        assert name in result.stderr
    assert "(ε = 2, δ = 1e-05)-differentially private" in result.stderr
    assert "random &lt;b&gt;images" in (output / "report.html").read_text("utf-8")


def test_npz_is_what_dpimagebench_reads(artifact: Path, tmp_path: Path) -> None:
    result = run(artifact, "--output", tmp_path / "out", "--format", "npz", "--no-relabel", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"gen.npz"}
    with np.load(tmp_path / "out" / "gen.npz") as archive:
        assert archive["x"].shape == (5, 1, 28, 28)
        assert archive["x"].dtype == np.float32
        assert archive["y"].tolist() == [0, 0, 0, 0, 1]


def test_ctrl_c_keeps_a_checkpoint_from_which_resume_reaches_the_same_result(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(artifact, "--output", tmp_path / "whole", "--seed", 3, *QUICK).exit_code == 0
    run_step = training.GeneratorTraining.run_step

    def step_and_interrupt(state: training.GeneratorTraining) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # noticed during the step, which is finished first
        run_step(state)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(training.GeneratorTraining, "run_step", step_and_interrupt)
        result = run(artifact, "--output", output, "--seed", 3, *QUICK)
    assert_one_sentence(result, 130, "step 1 of 3", "--resume")
    assert not output.exists()
    assert {"checkpoint.pt", "preview.png", "curve.png"} <= {path.name for path in (tmp_path / "out.partial").iterdir()}

    assert_one_sentence(run(artifact, "--output", output, *QUICK), 2, "interrupted run", "--resume", "--force")
    assert_one_sentence(run(artifact, "--output", output, "--seed", 4, "--resume"), 2, "--seed 3, not --seed 4")
    result = run(artifact, "--output", output, "--resume", "--samples", 5, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out.partial").exists()
    whole, resumed = tmp_path / "whole", output
    assert (whole / "generator.safetensors").read_bytes() == (resumed / "generator.safetensors").read_bytes()
    for picture in (whole / "images").rglob("*.png"):
        assert picture.read_bytes() == (resumed / picture.relative_to(whole)).read_bytes()


def test_a_finished_run_can_be_trained_for_longer_and_drawn_again(artifact: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(artifact, "--output", output, *QUICK).exit_code == 0
    weights = (output / "generator.safetensors").read_bytes()
    assert run(artifact, "--output", output, "--resume", "--format", "npz", "--samples", 2).exit_code == 0
    assert (output / "generator.safetensors").read_bytes() == weights
    assert (output / "gen.npz").exists()
    assert not (output / "images").exists()
    assert run(artifact, "--output", output, "--resume", "--steps", 4, "--samples", 2).exit_code == 0
    assert (output / "generator.safetensors").read_bytes() != weights
    assert len(json.loads((output / "run.json").read_text("utf-8"))["losses"]["every_step"]) == 4


@pytest.fixture
def like_the_classes(artifact: Path, tmp_path: Path) -> tuple[Path, Path]:
    """80 public images, by turns like those of one and the other class: 30 PNG files in a folder, 50 in an npz."""
    random = torch.Generator().manual_seed(0)
    of_class = torch.rand(len(CLASSES), 1, 28, 28, generator=random)
    images = 0.9 * of_class.repeat(40, 1, 1, 1) + 0.1 * torch.rand(80, 1, 28, 28, generator=random)
    pixels = (255 * images).round().to(torch.uint8).numpy()
    folder, array = tmp_path / "photographs", tmp_path / "more.npz"
    folder.mkdir()
    for number, image in enumerate(pixels[:30]):
        Image.fromarray(image[0]).save(folder / f"{number:02d}.png")
    np.savez(array, x=pixels[30:])
    return folder, array


@pytest.mark.parametrize(
    "work, doing",
    [
        ("labelling", "learning labels"),
        ("public_images", "choosing public images"),
        ("images", "drawing images"),
    ],
)
def test_ctrl_c_after_training_stops_and_resume_draws_again(
    work: str,
    doing: str,
    artifact: Path,
    like_the_classes: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, public = tmp_path / "out", ("--public", like_the_classes[0])
    before = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(command._Display, work, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        result = run(artifact, "--output", output, *public, *QUICK)
    assert_one_sentence(result, 130, f"stopped while {doing}", "--resume")
    assert {path.name for path in tmp_path.iterdir()} == before | {"out.partial"}
    assert run(artifact, "--output", output, *public, "--resume", "--samples", 5, "--device", "cpu").exit_code == 0
    assert {path.name for path in output.iterdir()} == FILES | {"images"}


def test_public_images_are_the_last_of_their_class_and_told_apart(
    artifact: Path, like_the_classes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_images, "REACH", np.inf)  # three steps leave the generator far from everything
    folder, array = like_the_classes
    output, public = tmp_path / "out", ("--public", folder, "--public", array)
    result = run(artifact, "--output", output, *public, *QUICK, "--samples", 40)
    assert result.exit_code == 0, result.output
    assert "15 of the images are real public ones" in result.stderr

    record = json.loads((output / "run.json").read_text("utf-8"))
    assert [(entry["images"], entry["public_images"]) for entry in record["classes"]] == [(30, 10), (10, 5)]
    of_folder, of_array = record["public"]
    assert (of_folder["path"], of_folder["images"], of_folder["unreadable"]) == (str(folder), 30, 0)
    assert (of_array["path"], of_array["images"], of_array["unreadable"]) == (str(array), 50, 0)
    assert np.add(of_folder["chosen_of_class"], of_array["chosen_of_class"]).tolist() == [10, 5]
    report = (output / "report.html").read_text("utf-8")
    assert "15 of the images are real public ones" in report
    assert "Of them public" in report

    with np.load(array) as archive:
        given = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())] + list(archive["x"][:, 0])
    place = {image.tobytes(): number for number, image in enumerate(given)}
    for label, (name, number, chosen) in enumerate((("0", 30, 10), ("T-shirt_top", 10, 5))):
        written = [np.asarray(Image.open(path)) for path in sorted((output / "images" / name).iterdir())]
        places = [place.get(image.tobytes()) for image in written]
        assert places[: number - chosen] == [None] * (number - chosen)
        public_places = [found for found in places[number - chosen :] if found is not None]
        assert len(public_places) == chosen
        assert all(found % 2 == label for found in public_places)
        assert sum(found < 30 for found in public_places) == of_folder["chosen_of_class"][label]
    assert np.bincount(open_images(output, public=True).labels).tolist() == [30, 10]

    again = run(artifact, "--output", output, "--resume", "--format", "npz", *public, "--samples", 40)
    assert again.exit_code == 0, again.output
    with np.load(output / "gen.npz") as archive:
        marked, labels = archive["public"], archive["y"]
        last = [image.tobytes() for image in np.rint(archive["x"][marked, 0] * 255).astype(np.uint8)]
    assert marked.tolist() == [False] * 25 + [True] * 15
    assert np.bincount(labels[marked]).tolist() == [10, 5]
    assert all(place[image] % 2 == label for image, label in zip(last, labels[marked], strict=True))
    assert np.bincount(open_images(output, public=True).labels).tolist() == [30, 10]


def test_what_is_far_from_every_class_changes_nothing(artifact: Path, tmp_path: Path) -> None:
    """Checkerboards are like no image of either class: the data set is the one without them."""
    np.savez(tmp_path / "boards.npz", x=np.tile(np.array([[0, 255], [255, 0]], np.uint8), (40, 14, 14)))
    options = (artifact, "--format", "npz", *QUICK)
    assert run(*options, "--output", tmp_path / "without").exit_code == 0
    result = run(*options, "--output", tmp_path / "with", "--public", tmp_path / "boards.npz")
    assert result.exit_code == 0, result.output
    assert "0 of the images are real public ones" in result.stderr
    with np.load(tmp_path / "without" / "gen.npz") as one, np.load(tmp_path / "with" / "gen.npz") as other:
        assert set(other.files) - set(one.files) == {"public"}
        assert not other["public"].any()
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    assert json.loads((tmp_path / "without" / "run.json").read_text("utf-8"))["public"] == []
    assert "public ones" not in (tmp_path / "without" / "report.html").read_text("utf-8")


def test_unusable_public_images_are_refused_before_training(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("missing", "empty", "text.zip"):
        result = run(artifact, "--output", tmp_path / "out", "--public", tmp_path / name, *QUICK)
        assert_one_sentence(result, result.exit_code, name)
        assert result.exit_code in (1, 2)
        assert "Training" not in result.stderr
    one_class = write_release(tmp_path / "one.h5", CLASSES[:1])
    np.savez(tmp_path / "more.npz", x=np.zeros((2, 28, 28), np.uint8))
    result = run(one_class, "--output", tmp_path / "out", "--public", tmp_path / "more.npz", *QUICK)
    assert_one_sentence(result, 2, "--public", "leave it out")
    assert not list(tmp_path.glob("out*"))


def test_images_keep_the_class_they_were_drawn_for_where_scores_say_nothing_of_it(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpmepf.synthesize.labelling.INFORMATIVE", 0.0)
    output = tmp_path / "out"
    result = run(artifact, "--output", output, *QUICK)
    assert result.exit_code == 0, result.output
    assert json.loads((output / "run.json").read_text("utf-8"))["output"]["relabelled"] is False


def test_images_keep_the_class_they_were_drawn_for_if_asked(artifact: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(artifact, "--output", output, "--no-relabel", *QUICK).exit_code == 0
    record = json.loads((output / "run.json").read_text("utf-8"))
    assert record["output"]["relabelled"] is False
    assert record["settings"]["probe"] is False  # more noise for the generator, for nothing
    assert run(artifact, "--output", output, "--resume", "--samples", 4).exit_code == 0
    assert json.loads((output / "run.json").read_text("utf-8"))["output"]["relabelled"] is False
    assert_one_sentence(run(artifact, "--output", output, "--resume", "--relabel"), 2, "trained with --no-relabel")
    assert "the generator was asked for" in (output / "report.html").read_text("utf-8")


def test_a_run_with_public_images_goes_on_without_correcting_labels_too(
    artifact: Path, like_the_classes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a probe, by which public images are judged: that is no sign that labels were to be corrected."""
    monkeypatch.setattr(labelling, "INFORMATIVE", 9.0)  # however little three steps taught
    output = tmp_path / "out"
    public = ("--public", like_the_classes[0])
    assert run(artifact, "--output", output, "--no-relabel", *public, *QUICK).exit_code == 0
    for options, relabelled in ((public, False), ((), False), (("--relabel",), True), ((), True)):
        assert run(artifact, "--output", output, "--resume", "--samples", 4, *options).exit_code == 0
        record = json.loads((output / "run.json").read_text("utf-8"))
        assert (record["settings"]["probe"], record["output"]["relabelled"]) == (True, relabelled)


def test_an_artifact_that_the_key_did_not_sign_is_refused(artifact: Path, tmp_path: Path) -> None:
    key, public, mine = Ed25519PrivateKey.generate(), tmp_path / "custodian.pub.pem", tmp_path / "artifact.h5"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    mine.write_bytes(artifact.read_bytes())
    unsigned = run(mine, "--output", tmp_path / "out", "--verify-key", public, *QUICK)
    assert (unsigned.exit_code, "is not signed" in unsigned.output) == (1, True)
    assert not (tmp_path / "out").exists()
    sign_file(mine, key)
    assert run(mine, "--output", tmp_path / "out", "--verify-key", public, *QUICK).exit_code == 0


def test_an_existing_result_is_kept_unless_forced(artifact: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(artifact, "--output", output, *QUICK).exit_code == 0
    before = (output / "run.json").read_bytes()
    assert_one_sentence(run(artifact, "--output", output, *QUICK), 2, "exists", "--force")
    assert (output / "run.json").read_bytes() == before
    assert run(artifact, "--output", output, "--force", "--seed", 1, *QUICK).exit_code == 0
    assert json.loads((output / "run.json").read_bytes())["settings"]["seed"] == 1


def test_somebody_elses_folder_survives_even_force(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert_one_sentence(run(artifact, "--output", tmp_path, "--force", *QUICK), 2, "did not write")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    output = tmp_path / "out"
    assert run(artifact, "--output", output, *QUICK).exit_code == 0
    shutil.copyfile(artifact, output / "artifact.h5")
    for option in ("--resume", "--force"):
        result = run(output / "artifact.h5", "--output", output, option, *QUICK)
        assert_one_sentence(result, 2, "did not write, 'artifact.h5'", "move it elsewhere")
    assert (output / "artifact.h5").read_bytes() == artifact.read_bytes()


def test_fewer_steps_than_were_made_are_refused_and_smaller_micro_batches_are_not(
    artifact: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert run(artifact, "--output", output, *QUICK).exit_code == 0
    result = run(artifact, "--output", output, "--resume", "--steps", 2)
    assert_one_sentence(result, 2, "has made 3 steps, more than --steps 2")
    assert json.loads((output / "run.json").read_text("utf-8"))["settings"]["steps"] == 3
    again = run(artifact, "--output", output, "--resume", "--steps", 4, "--micro-batch-size", 2, "--samples", 5)
    assert again.exit_code == 0, again.output
    assert json.loads((output / "run.json").read_text("utf-8"))["settings"]["micro_batch_size"] == 2


def test_too_little_memory_is_said_with_what_to_do(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    for place in ("train_generator", "learn_discriminant"):
        with monkeypatch.context() as patch:
            patch.setattr(synthesis, place, run_out)
            result = run(artifact, "--output", tmp_path / "out", *QUICK)
        assert_one_sentence(result, 1, "out of memory", "--micro-batch-size")
        assert ("--resume" in result.stderr) == (place == "learn_discriminant")  # whose training is in a checkpoint
        assert not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), WorkerDiedError("a decoding process ended")],
    ids=["full disk", "Ctrl-C", "lost worker"],
)
def test_whatever_ends_the_drawing_the_training_is_kept_and_that_is_said(
    error: BaseException, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "write_image_folders", fail)
        result = run(artifact, "--output", tmp_path / "out", *QUICK)
    assert "Traceback" not in result.stderr
    kept = f"A checkpoint is in {tmp_path / 'out.partial'}: go on with --resume"
    assert kept in result.stderr
    with monkeypatch.context() as patch:  # Planted: an older run's checkpoint, which this one does not go on from
        patch.setattr(synthesis, "prepare", fail)
        assert kept not in run(artifact, "--output", tmp_path / "out", "--force", *QUICK).stderr
    again = run(artifact, "--output", tmp_path / "out", "--resume", *QUICK)
    assert again.exit_code == 0 and "begun anew" not in again.stderr
    nothing = run(artifact, "--output", tmp_path / "typo", "--resume", *QUICK)
    assert nothing.exit_code == 0 and f"go on with: {tmp_path / 'typo.partial'} is begun anew" in nothing.stderr


def test_what_the_system_refuses_is_named(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: OutputFolder, **_: object) -> Path:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self.partial))

    monkeypatch.setattr(OutputFolder, "begin", refuse)
    result = run(artifact, "--output", tmp_path / "out", *QUICK)
    assert_one_sentence(result, 1, f"{tmp_path / 'out.partial'}: No such file or directory: choose another path")


def test_more_classes_than_the_preview_has_room_for_get_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_count = 260

    def last_class(*_: Any, **__: Any) -> Any:
        return mock.Mock(corrects=True, side_effect=lambda images, asked: torch.full_like(asked, class_count - 1))

    monkeypatch.setattr(synthesis, "learn_discriminant", last_class)
    many = write_release(tmp_path / "many.h5", tuple(f"class {index}" for index in range(class_count)))
    result = run(many, "--output", tmp_path / "out", "--format", "npz", *QUICK)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["output"]["relabelled"]


def test_resume_of_another_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "out", tmp_path / "other.h5"
    assert run(artifact, "--output", output, *QUICK).exit_code == 0
    other.write_bytes(artifact.read_bytes())
    with h5py.File(other, "r+") as file:
        file["noisy_counts"][0] += 1
    assert_one_sentence(run(other, "--output", output, "--resume"), 2, "another artifact")


def test_a_full_disk_leaves_a_checkpoint_and_nothing_that_looks_finished(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sampling, "_write_pngs", fail)
    assert_one_sentence(run(artifact, "--output", tmp_path / "out", *QUICK), 1, "the disk is full")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "checkpoint.pt").is_file()


def test_bad_artifacts_are_refused_in_a_sentence(artifact: Path, tmp_path: Path) -> None:
    whole = artifact.read_bytes()
    (tmp_path / "truncated.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["images"] = np.zeros(3)
    for name in ("truncated.h5", "text.h5", "foreign.h5", "missing.h5"):
        result = run(tmp_path / name, "--output", tmp_path / "out", *QUICK)
        assert result.exit_code in (1, 2), name
        assert_one_sentence(result, result.exit_code)
    assert not list(tmp_path.glob("out*"))


def test_class_sizes_that_would_fill_the_disk_are_refused_before_training(artifact: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.h5"
    large.write_bytes(artifact.read_bytes())
    with h5py.File(large, "r+") as file:
        file["noisy_counts"][()] = 2**40
    options = ("--output", tmp_path / "out", "--steps", 3, "--batch-size", 4, "--device", "cpu")
    assert_one_sentence(run(large, *options), 2, "ask for", "no more than 10,000,000", "--samples")
    assert not list(tmp_path.glob("out*"))


def test_a_claim_that_the_numbers_do_not_support_is_not_repeated(artifact: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged.h5"
    forged.write_bytes(artifact.read_bytes())
    with h5py.File(forged, "r+") as file:
        text = file["ledger"][()]
        claim = text.replace(b'"epsilon": 2.0', b'"epsilon": 1.0')
        assert claim != text
        file["ledger"][()] = claim
    assert_one_sentence(run(forged, "--output", tmp_path / "out", *QUICK), 1, "claims what its numbers do not support")


def test_images_are_varied_when_asked_and_a_run_goes_on_as_it_began(artifact: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = run(artifact, "--output", output, "--vary", "--json", *QUICK)
    assert result.exit_code == 0, result.output
    assert "images (changed at random as they are drawn) on" in result.stderr
    record = json.loads(result.stdout)
    assert record["settings"]["vary"] is True
    assert list(record["generator"]["random_changes"]) == list(CHANGES)
    assert load_generator(output)[0].variation is not None
    resumed = run(artifact, "--output", output, "--no-vary", "--resume", "--steps", "4")
    assert_one_sentence(resumed, 2, "has --vary, not --no-vary")


def test_images_are_varied_as_those_of_the_generator_that_training_begins_with(artifact: Path, tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    assert run(artifact, "--output", prior, "--vary", *QUICK).exit_code == 0
    begun = run(artifact, "--output", tmp_path / "out", "--prior", prior, "--json", *QUICK)
    assert begun.exit_code == 0, begun.stderr
    assert json.loads(begun.stdout)["settings"]["vary"] is True
    refused = run(artifact, "--output", tmp_path / "other", "--prior", prior, "--no-vary", *QUICK)
    assert_one_sentence(refused, 2, "give --vary or --no-vary as for it")


def test_a_run_that_begins_with_another_generator_says_so_and_goes_on(artifact: Path, tmp_path: Path) -> None:
    """The other one is not needed to go on; a third is refused, and so is one that draws other images."""
    prior, out = tmp_path / "prior", tmp_path / "out"
    assert run(artifact, "--output", prior, *QUICK, "--seed", 7).exit_code == 0
    begun = run(artifact, "--output", out, *QUICK, "--prior", prior)
    assert begun.exit_code == 0, begun.stderr
    assert "changed at random" not in begun.stderr
    digest = hashlib.sha256((prior / "generator.safetensors").read_bytes()).hexdigest()
    record = json.loads((out / "run.json").read_text())
    learned_from = json.loads((prior / "run.json").read_text())["artifact"]["releases"]
    assert record["prior"] == {"sha256": digest, "releases": learned_from}
    for place in (begun.stderr, (out / "report.html").read_text("utf-8")):
        assert f"(SHA-256 {digest}), which learned from release {learned_from[0]['release_id']} of" in place
        assert "That is beside the claim" in place
    assert run(artifact, "--output", tmp_path / "alone", *QUICK).exit_code == 0
    alone = json.loads((tmp_path / "alone" / "run.json").read_text())
    assert alone["prior"] is None
    assert "another generator" not in (tmp_path / "alone" / "report.html").read_text("utf-8")
    assert alone["losses"]["every_step"][0] != record["losses"]["every_step"][0]
    longer = run(artifact, "--output", out, "--resume", "--steps", 5, "--samples", 5)
    assert longer.exit_code == 0, longer.stderr
    assert json.loads((out / "run.json").read_text())["prior"] == record["prior"]
    again = ("--resume", "--steps", 6, "--samples", 5, "--prior")
    assert run(artifact, "--output", out, *again, prior).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert_one_sentence(run(artifact, "--output", out, *again, tmp_path / "alone"), 2, "began with other weights")
    assert_one_sentence(run(artifact, "--output", out, "--force", *QUICK, "--prior", tmp_path), 1, "generator")
    varied = ("--vary", "--prior", prior, "--force")
    assert_one_sentence(run(artifact, "--output", out, *QUICK, *varied), 2, "--prior: its generator has varied False")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_artifacts_of_the_former_default_are_audited_and_trained_from(tmp_path: Path) -> None:
    """Until commit 6c1d21e the first four layers were averaged over the whole image."""
    path = write_release(tmp_path / "former.h5", CLASSES, pooling=(1,) * 4 + (2,) * 4)
    audited = CliRunner().invoke(audit, [str(path)])
    assert audited.exit_code == 0 and "3,264 (default)" in audited.output
    result = run(path, "--output", tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["artifact"]["feature_dimension"] == 3_264


def test_an_artifact_whose_feature_map_has_another_length_now_is_refused(artifact: Path, tmp_path: Path) -> None:
    """As of an earlier version of the program."""
    release = read_artifact(artifact)
    pooling = tuple(2 * positions for positions in release.feature_map.pooling)
    longer = dataclasses.replace(release, feature_map=dataclasses.replace(release.feature_map, pooling=pooling))
    write_artifact(tmp_path / "earlier.h5", longer)
    result = run(tmp_path / "earlier.h5", "--output", tmp_path / "out", *QUICK)
    assert_one_sentence(result, 1, "has 3,840 features per class, but its feature map gives")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("damaged", [False, True])
def test_other_encoder_weights_than_the_artifacts_are_refused(damaged: bool, artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    if damaged:
        file.write_bytes(b"not weights")
    else:
        weights = load_file(BUILTIN_WEIGHTS)
        save_file({name: tensor * 2 if name == "classifier.bias" else tensor for name, tensor in weights.items()}, file)
    result = run(artifact, "--output", tmp_path / "out", "--encoder-weights", file, *QUICK)
    assert_one_sentence(result, 1, "the weights of builtin in weights.safetensors have the SHA-256")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", 0),
        ("--batch-size", 1),
        ("--samples", 0),
        ("--samples", 10**12),
        ("--output", "."),
        ("--learning-rate", 0),
        ("--learning-rate", "nan"),
        ("--seed", -1),
        ("--preset", "fast"),
        ("--format", "tar"),
        ("--device", "abacus"),
        ("--resume", "--force"),
    ],
)
def test_options_outside_their_range_are_usage_errors(
    arguments: tuple[object, ...], artifact: Path, tmp_path: Path
) -> None:
    result = run(artifact, "--output", tmp_path / "out", *arguments)
    assert_one_sentence(result, 2)
    assert not list(tmp_path.glob("out*"))


def test_a_preset_takes_fewer_steps_where_noise_is_large_and_says_so(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "NOISY_STEPS", 2)
    usual = settings.settings_for("best", bfloat16=autocast_dtype(torch.device("cpu")) is torch.bfloat16).steps
    result = run(artifact, "--output", tmp_path / "out", "--preset", "best", "--json", *QUICK[2:])
    assert result.exit_code == 0, result.output
    assert f"{usual:,} steps would learn it: fewer are made. Training for 2 steps" in " ".join(result.stderr.split())
    made = json.loads(result.stdout)["settings"]
    assert (made["preset"], made["steps"]) == ("best", 2)
    result = run(artifact, "--output", tmp_path / "out", "--preset", "best", "--resume", "--json", *QUICK)
    assert json.loads(result.stdout)["settings"]["steps"] == 3  # --steps
    assert "would learn it" not in result.stderr


def test_the_steps_of_training_alone_go_through_the_compiled_encoder(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def compiled(feature_map: Any) -> Any:
        def forward(images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return feature_map(images)

        return forward

    plain = json.loads(run(artifact, "--output", tmp_path / "plain", "--json", *QUICK).stdout)
    monkeypatch.setattr(torch, "compile", compiled)
    result = run(artifact, "--output", tmp_path / "out", "--compile", "--json", *QUICK)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert sizes == [4] * 4  # a trial and three steps, while labels are learned, too
    assert record["losses"] == plain["losses"]
    assert [plain["compiled"], record["compiled"]] == [False, True]
    result = run(artifact, "--output", tmp_path / "out", "--compile", "--resume", "--json", *QUICK)
    assert sizes == [4] * 4 and not json.loads(result.stdout)["compiled"]  # there is no step to make


def test_a_machine_that_cannot_compile_says_so_before_anything_is_written(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(function: Any, **options: Any) -> Any:
        def fail(*arguments: Any) -> Any:
            raise RuntimeError("no compiler in /home/user")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    result = run(artifact, "--output", tmp_path / "out", "--compile", *QUICK)
    assert_one_sentence(result, 2, "torch.compile does not work here", "leave --compile out")
    assert "/home" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_option_explains_itself() -> None:
    for parameter in main.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name
