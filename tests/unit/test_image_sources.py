"""Every accepted form of a data set is recognised by looking, with labels from its form."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpmepf.shared.class_names import numbered_classes, parse_classes
from dpmepf.shared.image_errors import (
    AmbiguousLayoutError,
    ClassesError,
    DataNotFoundError,
    LabelError,
    SplitError,
    UnreadableDataError,
)
from dpmepf.shared.image_source_types import ArrayImageSource
from dpmepf.shared.image_sources import UndeclaredClassError, open_images

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def png(value: int = 0, *, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        target = root / name
        if name.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_idx(path: Path, array: np.ndarray) -> Path:
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_mnist(
    folder: Path, *, suffix: str = "", prefix: str = "", splits: tuple[str, ...] = ("train", "t10k")
) -> Path:
    for seed, split in enumerate(splits):
        generator = np.random.default_rng(seed)
        count = 12 - 2 * seed
        images = generator.integers(0, 256, (count, 28, 28))
        write_idx(folder / f"{prefix}{split}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}{split}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return folder


CLASS_FOLDERS = {
    "dog/b.png": png(3),
    "dog/a.PNG": png(2),
    "cat/deep/er/c.png": png(1),
    "axolotl/": b"",
    "cat/notes.txt": b"not a record",
    "cat/.hidden.png": b"not a record",
    "__MACOSX/cat/._c.png": b"not a record",
    ".git/x.png": b"not a record",
    "cat/Thumbs.db": b"not a record",
    "cat/.DS_Store": b"not a record",
}


@pytest.fixture(params=["folder", "zip"])
def pack(request: pytest.FixtureRequest, tmp_path: Path):
    """Write the same tree as a folder or as a zip."""
    if request.param == "folder":
        return lambda files: write_tree(tmp_path / "data", files)
    return lambda files: write_zip(tmp_path / "data.zip", files)


def first_pixels(source) -> list[int]:
    return [int(np.asarray(source.read(index)).flat[0]) for index in range(len(source))]


def test_class_folders_give_sorted_classes_an_empty_folder_included(pack):
    source = open_images(pack(CLASS_FOLDERS))
    assert source.kind.endswith("of class folders")
    assert source.classes == ("axolotl", "cat", "dog")
    assert not source.classes_declared
    assert source.labels.tolist() == [1, 2, 2]
    assert source.labels.dtype == np.int64
    assert first_pixels(source) == [1, 2, 3]
    assert source.location(0).endswith("cat/deep/er/c.png")


def test_declared_classes_set_the_order_of_labels_and_may_be_more_than_the_folders(pack):
    source = open_images(pack(CLASS_FOLDERS), classes=("dog", "cat", "cow", "axolotl"))
    assert source.classes == ("dog", "cat", "cow", "axolotl")
    assert source.classes_declared
    assert source.labels.tolist() == [1, 0, 0]


def test_a_class_folder_that_is_not_declared_is_refused_without_naming_it(pack):
    with pytest.raises(UndeclaredClassError) as caught:
        open_images(pack(CLASS_FOLDERS), classes=("cat", "axolotl"))
    assert "dog" not in str(caught.value)
    assert "dog" in caught.value.location
    assert caught.value.exit_code == 2


def test_a_flat_folder_is_one_unlabelled_class(pack):
    source = open_images(pack({"b.png": png(2), "a.png": png(1), "readme.txt": b""}))
    assert source.kind.startswith("flat")
    assert source.classes == ("unlabelled",)
    assert source.labels.tolist() == [0, 0]
    assert first_pixels(source) == [1, 2]


def test_several_classes_cannot_be_declared_for_a_flat_folder(pack):
    path = pack({"a.png": png()})
    assert open_images(path, classes=["scan"]).classes == ("scan",)
    with pytest.raises(ClassesError, match="no class folders"):
        open_images(path, classes=["a", "b"])


def test_images_beside_class_folders_are_refused_as_ambiguous(pack):
    with pytest.raises(AmbiguousLayoutError):
        open_images(pack({"cat/a.png": png(), "stray.png": png()}))


def test_a_single_wrapper_folder_is_entered(pack):
    source = open_images(pack({"dataset/v1/cat/a.png": png(), "dataset/v1/dog/b.png": png(), "dataset/README.md": b""}))
    assert source.classes == ("cat", "dog")


def test_a_single_class_folder_is_a_class_and_no_wrapper(pack):
    assert open_images(pack({"cat/a.png": png(), "cat/more/b.png": png()})).classes == ("cat",)


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training", "testing"), ("Train", "Val")])
def test_train_and_test_folders_are_splits_and_no_classes(pack, train, test):
    path = pack({f"w/{train}/cat/a.png": png(1), f"w/{train}/dog/b.png": png(2), f"w/{test}/dog/c.png": png(3)})
    assert open_images(path).classes == ("cat", "dog")
    assert open_images(path).split == "train"
    other = "val" if test == "Val" else "test"
    for source in (open_images(path, split=test), open_images(path, split=other)):
        assert (source.classes, source.split, first_pixels(source)) == (("dog",), other, [3])


def test_a_split_that_is_not_there_is_refused(pack):
    path = pack({"train/cat/a.png": png(), "test/cat/b.png": png()})
    with pytest.raises(SplitError, match="choose --split test or train"):
        open_images(path, split="val")
    with pytest.raises(SplitError, match="choose --split test or train"):
        open_images(path, default_split="val")


def test_a_split_of_undivided_data_is_refused(pack):
    with pytest.raises(SplitError, match="leave out --split"):
        open_images(pack({"cat/a.png": png()}), split="train")


def test_class_folders_without_any_image_are_a_data_set_of_no_record(pack):
    source = open_images(pack({"cat/": b"", "dog/": b""}))
    assert len(source) == 0
    assert source.classes == ("cat", "dog")


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = write_tree(tmp_path / "data", {"cat/a.png": png()})
    elsewhere = write_tree(tmp_path / "elsewhere", {"b.png": png()})
    (root / "dog").symlink_to(elsewhere)
    (root / "cat" / "loop").symlink_to(root)
    source = open_images(root)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["", "raw", "MNIST/raw"])
def test_mnist_named_idx_files_have_ten_classes_by_convention(tmp_path, suffix, inside):
    write_mnist(tmp_path / inside, suffix=suffix)
    train, test = open_images(tmp_path), open_images(tmp_path, default_split="test")
    assert (train.split, len(train), test.split, len(test)) == ("train", 12, "test", 10)
    assert train.classes == numbered_classes(10)
    assert not train.classes_declared
    assert train.labels.tolist() == [*range(10), 0, 1]
    expected = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
    assert np.array_equal(np.asarray(train.read(3)), expected[3][:, :, None])


def test_idx_files_of_another_name_need_declared_classes(tmp_path):
    write_mnist(tmp_path, prefix="emnist-letters-")
    with pytest.raises(ClassesError, match="--classes"):
        open_images(tmp_path)
    assert open_images(tmp_path, classes=numbered_classes(26)).classes[25] == "25"


def test_a_label_outside_the_classes_is_refused_without_its_value(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(LabelError) as caught:
        open_images(tmp_path, classes=numbered_classes(5))
    assert "image 5" in caught.value.location
    assert "image 5" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 8, 9), (4, 8, 9, 1)),
        ((4, 8, 9, 3), (4, 8, 9, 3)),
        ((4, 3, 8, 9), (4, 8, 9, 3)),
        ((4, 1, 8, 9), (4, 8, 9, 1)),
        ((4, 8, 9, 4), (4, 8, 9, 4)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_axes_and_types_are_recognised(tmp_path, shape, expected, dtype):
    values = np.random.default_rng(1).integers(0, 256, shape)
    stored = values.astype(np.uint8) if dtype == np.uint8 else (values / 255).astype(dtype)
    np.savez(tmp_path / "a.npz", x=stored, y=np.array([0, 1, 2, 0]))
    source = open_images(tmp_path / "a.npz", classes=numbered_classes(3))
    assert isinstance(source, ArrayImageSource)
    pixels, in_range = source.block(0, 4)
    assert pixels.shape == expected
    assert in_range.all()
    channels_last = values[..., None] if len(shape) == 3 else values
    if shape[1] in (1, 3):
        channels_last = values.transpose(0, 2, 3, 1)
    assert np.array_equal(pixels, channels_last)
    assert source.labels.tolist() == [0, 1, 2, 0]


def test_private_npz_labels_never_tell_the_classes(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((2, 8, 8), np.uint8), y=np.array([0, 6]))
    with pytest.raises(ClassesError, match="--classes 10"):
        open_images(path)
    assert open_images(path, public=True).classes == numbered_classes(7)
    np.savez(path, x=np.zeros((2, 8, 8), np.uint8), y=np.array([0, 1]), classes=np.array(["a", "b", "c"]))
    assert open_images(path).classes == ("a", "b", "c")


def test_npz_without_labels_is_unlabelled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8), np.uint8))
    assert open_images(tmp_path / "a.npz").classes == ("unlabelled",)


@pytest.mark.parametrize(("x", "y"), [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_npz_of_train_and_test_arrays_is_divided(tmp_path, x, y):
    arrays: dict[str, Any] = {}
    for split, count in (("train", 3), ("test", 2)):
        arrays[x.format(split)] = np.zeros((count, 8, 8), np.uint8)
        arrays[y.format(split)] = np.zeros((count, 1), np.int64)
    np.savez(tmp_path / "a.npz", **arrays)
    assert len(open_images(tmp_path / "a.npz", classes=["a"])) == 3
    assert len(open_images(tmp_path / "a.npz", classes=["a"], split="test")) == 2


@pytest.mark.parametrize("inner", ["images", "gen.npz"])
def test_the_output_folder_of_synth_is_read_without_its_preview(tmp_path, inner):
    root = write_tree(
        tmp_path / "synthetic",
        {"preview.png": png(), "curve.png": png(), "run.json": b"{}", "generator.safetensors": b"", "report.html": b""},
    )
    with pytest.raises(DataNotFoundError, match="generator"):
        open_images(root, public=True)
    if inner == "images":
        write_tree(root, {"images/cat/000000.png": png(), "images/dog/000000.png": png()})
    else:
        np.savez(root / "gen.npz", x=np.zeros((2, 1, 8, 8), np.float32), y=np.arange(2))
    source = open_images(root, public=True)
    assert source.labels.tolist() == [0, 1]
    assert source.classes == (("cat", "dog") if inner == "images" else ("0", "1"))


def test_synth_output_with_both_forms_is_ambiguous(tmp_path):
    root = write_tree(tmp_path, {"run.json": b"{}", "images/a/0.png": png(), "gen.npz": b""})
    with pytest.raises(AmbiguousLayoutError, match="two data sets"):
        open_images(root, public=True)


@pytest.mark.parametrize("form", ["folder", "zip", "idx", "npz"])
def test_a_pickled_source_reads_the_same_and_carries_no_pixels(tmp_path, form):
    if form == "folder":
        path = write_tree(tmp_path / "d", CLASS_FOLDERS)
    elif form == "zip":
        path = write_zip(tmp_path / "d.zip", CLASS_FOLDERS)
    elif form == "idx":
        path = write_mnist(tmp_path / "d")
    else:
        path = tmp_path / "d.npz"
        np.savez(path, x=np.random.default_rng(0).integers(0, 256, (40, 64, 64), np.uint8), y=np.zeros(40, int))
    source = open_images(path, classes=None if form != "npz" else ["a"])
    before = np.asarray(source.read(1))
    data = pickle.dumps(source)
    assert len(data) < 5000
    assert np.array_equal(pickle.loads(data).read(1), before)


@pytest.mark.parametrize(
    ("text", "names"),
    [("3", ("0", "1", "2")), ("cat, dog", ("cat", "dog")), ("10,", ("10",)), ("unlabelled", ("unlabelled",))],
)
def test_classes_are_a_number_or_names(text, names):
    assert parse_classes(text) == names


@pytest.mark.parametrize(
    "text", ["", "a,,b", "a,a", "0", "99999999999999", "a/b", "..", ".x", "a\\b", "a\nb", "a\x00", "x" * 300, "٣,"]
)
def test_class_names_that_could_not_name_a_folder_are_refused(text):
    if text == "٣,":  # a digit that is not ASCII is a name like any other
        assert parse_classes(text) == ("٣",)
        return
    with pytest.raises(ClassesError) as caught:
        parse_classes(text)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not (SHARED_DATA / "MNIST").is_dir(), reason="../shared/data/MNIST is not here")
def test_mnist_of_the_shared_data_opens_with_its_published_counts():
    train, test = (open_images(SHARED_DATA / "MNIST", split=split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.skipif(not (SHARED_DATA / "cifar10.zip").is_file(), reason="../shared/data/cifar10.zip is not here")
def test_cifar10_of_the_shared_data_opens_with_its_published_counts():
    train, test = (open_images(SHARED_DATA / "cifar10.zip", default_split=split) for split in ("train", "test"))
    assert " ".join(train.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.read(0).size == (32, 32)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"cat/a.png": png()})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 8] |= 1  # the encryption flag of the central directory
    path.write_bytes(data)
    with pytest.raises(UnreadableDataError, match="encrypted"):
        open_images(path)


def test_folders_that_link_to_each_other_are_each_read_once_on_a_way(tmp_path):
    root = write_tree(tmp_path / "data", {"a/1.png": png(), "b/2.png": png()})
    (root / "a" / "link").symlink_to("../b")
    (root / "b" / "link").symlink_to("../a")
    assert sorted(open_images(root).names) == ["a/1.png", "a/link/2.png", "b/2.png", "b/link/1.png"]


@pytest.mark.parametrize("public", [False, True])
def test_two_folders_for_one_split_are_refused(tmp_path, public):
    """One image in a folder `training` must not make the whole of `train` disappear."""
    folder = write_tree(tmp_path / "data", {"train/cat/a.png": png(), "training/cat/b.png": png()})
    with pytest.raises(AmbiguousLayoutError, match="two folders for one split"):
        open_images(folder, classes=("cat",), public=public)


def test_a_zip_that_holds_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("cat/a.png", png())
        archive.writestr("cat/a.png", png())
    with pytest.raises(UnreadableDataError, match="a name twice"):
        open_images(path)


def test_images_beside_arrays_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.npy": b"", "cat/a.png": png()})
    with pytest.raises(AmbiguousLayoutError, match="beside images"):
        open_images(path)


def test_images_beside_idx_files_are_refused(tmp_path):
    folder = write_tree(tmp_path / "data", {"cat/a.png": png()})
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (folder / name).write_bytes(b"")
    with pytest.raises(AmbiguousLayoutError, match="IDX files beside images"):
        open_images(folder)


def test_a_synthetic_folder_is_entered_only_for_public_data(tmp_path):
    """One person's folder `images` must not become the data set because a run.json lies beside it."""
    folder = write_tree(tmp_path / "data", {"images/p/a.png": png(), "cat/p/b.png": png(), "run.json": b"{}"})
    assert len(open_images(folder, classes=("cat", "images"))) == 2
    assert len(open_images(folder, public=True)) == 1


def test_a_zip_with_backslashes_is_refused_rather_than_read_as_unlabelled(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"cat\\a.png": png(), "dog\\b.png": png()})
    with pytest.raises(UnreadableDataError, match="backslashes"):
        open_images(path)


@pytest.mark.parametrize("name", ["cat//a.png", "/cat/a.png", "./cat/a.png", "cat/../a.png", "cat//"])
def test_a_zip_with_empty_or_relative_parts_in_its_names_is_refused(tmp_path, name):
    """Such a part would be taken for a class's or a person's folder."""
    path = write_zip(tmp_path / "a.zip", {"dog/b.png": png(), name: png()})
    with pytest.raises(UnreadableDataError, match="unpack it"):
        open_images(path)
