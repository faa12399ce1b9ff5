"""An evaluation compares the right classes of the right images, says what it did, and reads every accepted form."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dpmepf.shared.encoders import BuiltinEncoder
from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.image_errors import ClassesError, LabelError
from dpmepf.synthesize import distances
from dpmepf.synthesize.evaluation import NOTE, EvaluationSettings, evaluate, match_classes
from dpmepf.synthesize.evaluation_report import Accuracy, write_report
from dpmepf.synthesize.output_folder import MARKER_FILE

QUICK = EvaluationSettings(classifiers=("logistic",), seeds=1, distances=False, device="cpu", workers=0)
NAMES = ("bottom", "middle", "top")


def bars(count: int, *, seed: int, side: int = 28) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy grey images with a bright bar; label 0, 1, 2 means bottom, middle, top."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.integers(0, 100, (count, side, side))
    third = np.arange(side) * 3 // side
    images[(2 - labels[:, None]) == third] += 100
    return images.astype(np.uint8), labels


def write_folder(root: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], names: tuple[str, ...]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(root / names[label] / f"{index:06d}.png")
    return root


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of dpmepf-synth."""
    root = tmp_path_factory.mktemp("synthetic")
    (root / "run.json").write_text("{}")
    write_folder(root / "images", *bars(60, seed=0), NAMES)
    return root


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("real"), *bars(30, seed=1), NAMES)


def test_a_good_synthetic_set_scores_high_and_the_report_says_what_was_done(synthetic: Path, real: Path) -> None:
    report = evaluate(synthetic, real, QUICK)
    assert report.accuracy["logistic"].mean >= 0.95
    assert report.images == {"synthetic": 60, "real": 30, "skipped": 0}
    assert (report.resolution, report.channels, report.classes) == (28, 1, NAMES)
    assert report.distances is None
    assert report.extractor is None
    assert report.device == "cpu"
    assert "logistic" in report.protocol
    assert "outside the ledger" in report.note


def test_classes_are_matched_by_name_whatever_their_order(synthetic: Path, tmp_path: Path) -> None:
    images, labels = bars(30, seed=1)
    # Stored with labels 0, 1, 2 for top, bottom, middle.
    order = ("top", "bottom", "middle")
    stored = np.array([order.index(NAMES[label]) for label in labels])
    np.savez(tmp_path / "real.npz", x=images, y=stored, classes=np.array(order))
    assert evaluate(synthetic, tmp_path / "real.npz", QUICK).accuracy["logistic"].mean >= 0.95


def test_swapped_names_are_noticed_by_the_score(synthetic: Path, tmp_path: Path) -> None:
    swapped = write_folder(tmp_path / "real", *bars(30, seed=1), ("top", "bottom", "middle"))
    assert evaluate(synthetic, swapped, QUICK).accuracy["logistic"].mean <= 0.05


def test_class_matching_gives_the_real_label_of_each_synthetic_label() -> None:
    assert match_classes(("a", "b", "c"), ("c", "a", "b")).tolist() == [1, 2, 0]
    assert match_classes(("0", "1", "10", "2"), ("0", "1", "2", "10")).tolist() == [0, 1, 3, 2]
    assert match_classes(("0", "1"), ("cat", "dog")).tolist() == [0, 1]
    assert match_classes(("cat", "dog"), ("0", "1")).tolist() == [0, 1]
    names = tuple("abcdefghijkl")
    folders = tuple(sorted(map(str, range(12))))  # "0", "1", "10", "11", "2", …
    assert [folders[label] for label in match_classes(names, folders).tolist()] == [str(n) for n in range(12)]
    assert match_classes(folders, names).tolist() == [int(name) for name in folders]


@pytest.mark.parametrize(
    ("one", "other"),
    [(("cat", "dog"), ("cat", "cow")), (("cat", "dog"), ("cat", "cow", "dog")), (("0", "1", "2"), ("cat", "dog"))],
)
def test_different_classes_are_refused_in_a_sentence_that_names_the_difference(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    for first, second in ((one, other), (other, one)):
        lacking, more = (", ".join(n for n in a if n not in b) or "none" for a, b in ((first, second), (second, first)))
        with pytest.raises(ClassesError, match=f"the real data lack {lacking}, and have besides {more};"):
            match_classes(first, second)


def as_npz(root: Path) -> Path:
    images, labels = bars(30, seed=1)
    np.savez(root / "real.npz", x=images, y=labels)
    return root / "real.npz"


def as_float_npz(root: Path) -> Path:
    images, labels = bars(30, seed=1)
    np.savez(root / "real.npz", x=images[:, None].astype(np.float32) / 255, y=labels)
    return root / "real.npz"


def as_divided_folder(root: Path) -> Path:
    write_folder(root / "train", *bars(9, seed=2), NAMES)
    write_folder(root / "test", *bars(30, seed=1), NAMES)
    return root


def as_larger_rgb(root: Path) -> Path:
    images, labels = bars(30, seed=1, side=84)
    return write_folder(root / "real", np.stack([images] * 3, axis=3), labels, NAMES)


@pytest.mark.parametrize("write", [as_npz, as_float_npz, as_divided_folder, as_larger_rgb])
def test_every_form_of_real_data_is_read_and_brought_to_the_synthetic_size(
    synthetic: Path, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    report = evaluate(synthetic, write(tmp_path), QUICK)
    assert report.accuracy["logistic"].mean >= 0.95
    assert report.images["real"] == 30
    assert (report.resolution, report.channels) == (28, 1)


def test_idx_files_are_matched_by_number_and_the_test_part_is_taken(tmp_path: Path) -> None:
    names = tuple(f"digit {number}" for number in range(10))
    synthetic = write_folder(tmp_path / "synthetic", *bars(60, seed=0), names)
    (tmp_path / "real").mkdir()
    for prefix, count, seed in (("train", 3, 2), ("t10k", 30, 1)):
        images, labels = bars(count, seed=seed)
        pixels = struct.pack(">4i", 0x803, count, 28, 28) + images.tobytes()
        (tmp_path / "real" / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        content = struct.pack(">2i", 0x801, count) + labels.astype(np.uint8).tobytes()
        (tmp_path / "real" / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    report = evaluate(synthetic, tmp_path / "real", QUICK)
    assert report.accuracy["logistic"].mean >= 0.95
    assert report.images["real"] == 30
    chosen = dataclasses.replace(QUICK, split="train")
    assert evaluate(synthetic, tmp_path / "real", chosen).images["real"] == 3


def write_idx(root: Path, prefix: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    root.mkdir(exist_ok=True)
    pixels = struct.pack(">4i", 0x803, *images.shape) + images.tobytes()
    (root / f"{prefix}-images-idx3-ubyte").write_bytes(pixels)
    content = struct.pack(">2i", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()
    (root / f"{prefix}-labels-idx1-ubyte").write_bytes(content)


@pytest.mark.parametrize("prefix", ["t10k", "emnist-letters-test"])
@pytest.mark.parametrize("count", [3, 12])
def test_idx_files_of_more_or_fewer_classes_than_ten_are_those_of_the_synthetic_data(
    tmp_path: Path, count: int, prefix: str
) -> None:
    names = tuple(f"sign {chr(97 + number)}" for number in range(count))
    images, labels = bars(60, seed=0)
    synthetic = write_folder(tmp_path / "synthetic", images, labels + count - 3, names)
    images, labels = bars(30, seed=1)
    write_idx(tmp_path / "real", prefix, images, labels + count - 3)
    assert evaluate(synthetic, tmp_path / "real", QUICK).accuracy["logistic"].mean >= 0.95
    write_idx(tmp_path / "real", prefix, images, labels + count)
    with pytest.raises(UsageError, match=f"labels outside 0 to {count - 1}|the classes differ: of the {count} "):
        evaluate(synthetic, tmp_path / "real", QUICK)


@pytest.mark.usefixtures("untrained_builtin")
def test_distances_of_unlabelled_images_from_idx_files_are_measured(tmp_path: Path) -> None:
    write_idx(tmp_path / "real", "t10k", *bars(30, seed=1))
    (tmp_path / "synthetic").mkdir()
    for index, image in enumerate(bars(15, seed=1)[0]):
        Image.fromarray(image).save(tmp_path / "synthetic" / f"{index}.png")
    report = evaluate(
        tmp_path / "synthetic", tmp_path / "real", dataclasses.replace(QUICK, distances=True, extractor="builtin")
    )
    assert report.distances is not None and report.accuracy == {}


@pytest.mark.usefixtures("untrained_builtin")
def test_distances_alone_need_no_classes_in_common(synthetic: Path, tmp_path: Path) -> None:
    images, labels = bars(30, seed=1)
    real = write_folder(tmp_path / "real", images, labels, ("other", "names", "here"))
    settings = EvaluationSettings(classifiers=(), extractor="builtin", device="cpu")
    assert evaluate(synthetic, real, settings).note == NOTE
    with pytest.raises(ClassesError, match="lack bottom, middle, top, and have besides here, names, other"):
        evaluate(synthetic, real, QUICK)


def test_a_class_may_be_called_unlabelled(tmp_path: Path) -> None:
    names = ("bottom", "unlabelled", "top")
    synthetic = write_folder(tmp_path / "synthetic", *bars(60, seed=0), names)
    real = write_folder(tmp_path / "real", *bars(30, seed=1), names)
    assert evaluate(synthetic, real, QUICK).accuracy["logistic"].mean >= 0.95


def test_numbered_folders_are_matched_by_number_not_by_their_alphabetical_place(tmp_path: Path) -> None:
    images, thirds = bars(60, seed=0)
    labels = np.array([1, 2, 10])[thirds]  # in alphabetical order "10" comes before "2"
    synthetic = write_folder(tmp_path / "synthetic", images, labels, tuple(str(number) for number in range(11)))
    images, thirds = bars(30, seed=1)
    np.savez(tmp_path / "real.npz", x=images, y=np.array([1, 2, 10])[thirds])
    assert evaluate(synthetic, tmp_path / "real.npz", QUICK).accuracy["logistic"].mean >= 0.95
    named = write_folder(tmp_path / "named", *bars(60, seed=0), tuple("abcdefghijkl"))
    numbered = write_folder(tmp_path / "numbered", *bars(30, seed=1), tuple(str(number) for number in range(12)))
    report = evaluate(named, numbered, QUICK)
    assert report.accuracy["logistic"].mean >= 0.95
    assert "numbers were taken for the classes in this order: a, b, c" in report.note


def test_labels_that_are_damaged_are_said_to_be_and_names_are_not_passed_over(tmp_path: Path) -> None:
    """Planted: real data that name their classes, one label of which is none of them."""
    synthetic = write_folder(tmp_path / "synthetic", *bars(60, seed=0), NAMES)
    images, labels = bars(30, seed=1)
    np.savez(tmp_path / "named.npz", x=images, y=labels + 1, classes=np.array(NAMES[::-1]))
    np.savez(tmp_path / "negative.npz", x=images, y=labels - 1)
    for real in ("named.npz", "negative.npz"):
        with pytest.raises(UsageError, match=r"a label that numbers none|labels outside 0 to 2, the numbers of the 3"):
            evaluate(synthetic, tmp_path / real, QUICK)


def test_a_label_that_is_none_at_all_is_said_as_what_it_is(synthetic: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "real.tar", "w") as archive:
        for name in ("0.png", "0.cls"):
            (tmp_path / name).touch()
            archive.add(tmp_path / name, name)
    with pytest.raises(LabelError, match="holds no label"):
        evaluate(synthetic, tmp_path / "real.tar", QUICK)


def test_a_set_that_is_not_complete_is_not_measured(synthetic: Path, real: Path, tmp_path: Path) -> None:
    """What an interrupted dpmepf-synth leaves may lack whole classes."""
    partial = shutil.copytree(synthetic, tmp_path / "synthetic.partial")
    (partial / MARKER_FILE).touch()
    with pytest.raises(UsageError, match="is not complete: let dpmepf-synth --resume"):
        evaluate(partial, real, QUICK)


def test_class_folders_of_dpmepf_synth_have_the_names_and_numbers_of_its_record(tmp_path: Path) -> None:
    """Folders are sorted by name, and cannot have every name; neither says what the custodian called and counted."""
    names = ("zebra's", "yak", "ant")
    images, labels = bars(60, seed=0)
    folders = write_folder(tmp_path / "synthetic" / "images", images, labels, ("zebra_s", "yak", "ant")).parent
    record = [{"name": name, "folder": name.replace("'", "_")} for name in names]
    (folders / "run.json").write_text(json.dumps({"classes": record}))
    images, labels = bars(30, seed=1)
    np.savez(tmp_path / "unnamed.npz", x=images, y=labels)
    np.savez(tmp_path / "numbered.npz", x=images, y=labels, classes=np.array(["0", "1", "2"]))
    np.savez(tmp_path / "named.npz", x=images, y=2 - labels, classes=np.array(names[::-1]))
    write_folder(tmp_path / "folders", images, labels, ("zebra_s", "yak", "ant"))
    for real in ("unnamed.npz", "numbered.npz", "named.npz", "folders"):
        report = evaluate(folders, tmp_path / real, QUICK)
        assert report.accuracy["logistic"].mean >= 0.95, real
        assert ("in this order: zebra's, yak, ant" in report.note) == (real in ("unnamed.npz", "numbered.npz"))


def test_names_that_meet_numbers_are_said_in_their_order(synthetic: Path, tmp_path: Path) -> None:
    images, labels = bars(30, seed=1)
    np.savez(tmp_path / "real.npz", x=images, y=labels)
    assert (
        "numbers were taken for the classes in this order: bottom, middle, top"
        in evaluate(synthetic, tmp_path / "real.npz", QUICK).note
    )


def test_gen_npz_of_dpmepf_synth_is_read(real: Path, tmp_path: Path) -> None:
    images, labels = bars(60, seed=0)
    np.savez(tmp_path / "gen.npz", x=images[:, None].astype(np.float32) / 255, y=labels)
    (tmp_path / "run.json").write_text("{}")
    assert evaluate(tmp_path, real, QUICK).accuracy["logistic"].mean >= 0.95


def test_seeds_give_mean_and_sample_spread() -> None:
    score = Accuracy(seeds=(0.5, 0.7, 0.9))
    assert score.mean == pytest.approx(0.7)
    assert score.std == pytest.approx(0.2)
    assert Accuracy(seeds=(0.5,)).std is None


def test_each_seed_is_a_training_of_its_own(synthetic: Path, real: Path) -> None:
    settings = dataclasses.replace(QUICK, seeds=2)
    first = evaluate(synthetic, real, settings)
    assert len(first.accuracy["logistic"].seeds) == 2
    assert evaluate(synthetic, real, settings) == first


@pytest.fixture
def untrained_builtin(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> tuple[BuiltinEncoder, str]:
        torch.manual_seed(0)
        return BuiltinEncoder().eval().requires_grad_(False), "0" * 64

    monkeypatch.setattr(distances, "load_encoder", load)
    monkeypatch.setattr(distances, "KID_SUBSETS", 3)


@pytest.mark.usefixtures("untrained_builtin")
def test_distances_use_at_most_the_asked_number_of_images(synthetic: Path, real: Path) -> None:
    settings = dataclasses.replace(QUICK, classifiers=(), distances=True, samples=12, extractor="builtin")
    report = evaluate(synthetic, real, settings)
    assert report.images["synthetic_in_distances"] == report.images["real_in_distances"] == 12
    assert report.accuracy == {}
    assert report.extractor is not None and report.extractor.startswith("builtin")
    assert report.distances is not None and 0 <= report.distances.precision <= 1


@pytest.mark.usefixtures("untrained_builtin")
def test_unlabelled_images_get_distances_only_and_the_note_says_why(synthetic: Path, tmp_path: Path) -> None:
    for index, image in enumerate(bars(15, seed=1)[0]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    settings = dataclasses.replace(QUICK, distances=True, extractor="builtin")
    report = evaluate(synthetic, tmp_path, settings)
    assert report.accuracy == {}
    assert report.distances is not None
    assert report.note.startswith(NOTE)
    assert "no labels" in report.note
    with pytest.raises(UsageError, match="allow distances"):
        evaluate(synthetic, tmp_path, QUICK)


def test_progress_is_announced_and_reached(synthetic: Path, real: Path) -> None:
    seen: list[tuple[str, int, str, int]] = []

    @contextmanager
    def watch(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        counts: list[int] = []
        yield counts.append
        seen.append((description, total, unit, sum(counts)))

    evaluate(synthetic, real, dataclasses.replace(QUICK, seeds=2), watch=watch)
    assert [description for description, *_ in seen] == [
        "Reading synthetic images",
        "Reading real images",
        "Training logistic",
    ]
    assert all(total == reached for _, total, _, reached in seen)


def test_a_damaged_image_stops_the_evaluation_or_is_left_out_and_counted(synthetic: Path, tmp_path: Path) -> None:
    real = write_folder(tmp_path / "real", *bars(30, seed=1), NAMES)
    (real / "top" / "notes.png").write_text("no image")
    with pytest.raises(DpmepfError, match="--skip-unreadable"):
        evaluate(synthetic, real, QUICK)
    report = evaluate(synthetic, real, dataclasses.replace(QUICK, skip_unreadable=True))
    assert report.images == {"synthetic": 60, "real": 30, "skipped": 1}


def test_too_few_images_are_refused_on_either_side(synthetic: Path, real: Path, tmp_path: Path) -> None:
    few = write_folder(tmp_path / "few", *bars(9, seed=0), NAMES)
    with pytest.raises(UsageError, match="synthetic data hold too few"):
        evaluate(few, real, QUICK)
    with pytest.raises(UsageError, match="real data hold too few"):
        evaluate(synthetic, few, dataclasses.replace(QUICK, distances=True))
    assert evaluate(synthetic, few, QUICK).images["real"] == 9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classifiers": ("forest",)}, "logistic, mlp, cnn"),
        ({"classifiers": ("cnn", "cnn")}, "named twice"),
        ({"classifiers": (), "distances": False}, "nothing to measure"),
        ({"seeds": 0}, "at least 1"),
        ({"samples": 9}, "at least 10"),
        ({"extractor": "vgg"}, "auto, inception, builtin"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        dataclasses.replace(QUICK, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["tpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(synthetic: Path, real: Path, device: str) -> None:
    with pytest.raises(UsageError, match="choose one of auto, cpu"):
        evaluate(synthetic, real, dataclasses.replace(QUICK, device=device))


def test_a_report_is_written_whole_or_not_at_all(
    synthetic: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(synthetic, real, QUICK)
    path = tmp_path / "scores.json"
    write_report(path, report)
    assert json.loads(path.read_text()) == report.to_dict()
    path.write_text("older")
    with monkeypatch.context() as patch:

        def full_disk(self: Path, text: str, **options: object) -> int:
            with self.open("w") as file:
                file.write(text[:10])
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_report(path, report)
    assert path.read_text() == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]
