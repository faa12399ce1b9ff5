"""Whose image each image is, from a list or from folders; and that an embedding by person is for the person."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_pipeline import DIMENSION, WEIGHT, StandInFeatures, open_npz, settings

from dpmepf.embed.persons import persons_from_folders, persons_from_list
from dpmepf.embed.pipeline import sum_images
from dpmepf.embed.release import mechanism_input
from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_sources import ImageSource, open_images
from dpmepf.shared.schema import ImageSchema

NAMES = ("cat/1.png", "cat/2.png", "dog/1.png")


def write_images(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    generator = np.random.default_rng(0)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return root


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return open_images(write_images(tmp_path / "data"), classes=("cat", "dog"))


def listed(source: ImageSource, tmp_path: Path, text: str, encoding: str = "utf-8") -> list[int]:
    file = tmp_path / "persons.csv"
    file.write_text(text, encoding=encoding)
    return persons_from_list(source, file).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "image,person\ncat/1.png,ann\ncat/2.png,bob\ndog/1.png,ann\n",
        "ward;Person;Image\n1;ann;cat/1.png\n1;bob;cat/2.png\n2;ann;dog/1.png\n",
        "image\tperson\r\n./cat/1.png\t ann \r\ncat\\2.png\tbob\r\n\r\ndog//1.png\tann",
        '\ufeff"image","person"\n"cat/1.png","ann"\n"cat/2.png","bob"\n"dog/1.png","ann"\n',
        "image,person\ncat/1.png,ann\ncat/2.png,bob\ndog/1.png,ann\ndog/not-there.png,cid\ncat/1.png,ann\n",
        "image,person\ncat/1.png,Zoe\u0308\ncat/2.png,bob\ndog/1.png,Zo\u00eb\n",
        'image,"the ward, then; the bed",person\ncat/1.png,1,ann\ncat/2.png,1,bob\ndog/1.png,2,ann\n',
        "image;person\ncat/1.png;Ann, senior\ncat/2.png;Ann, junior\ndog/1.png;Ann, senior\n",
    ],
)
def test_a_list_names_the_person_of_each_image(source: ImageSource, tmp_path: Path, text: str) -> None:
    assert listed(source, tmp_path, text) == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,person\ncat/1.png,ann\ncat/2.png,bob\n", "does not name the person of every image"),
        ("image,person\n", "does not name the person of every image"),
        ("", "names its columns"),
        ("cat/1.png,ann\ncat/2.png,bob\ndog/1.png,ann\n", "names its columns"),
        ("image,person,person\n", "names its columns"),
        ("image,person\ncat/1.png,ann\ncat/2.png,\ndog/1.png,ann\n", "without an image or without a person"),
        ("image,person\ncat/1.png,ann\n ,bob\ndog/1.png,ann\n", "without an image or without a person"),
        ("image,person\ncat/1.png,ann\ncat/2.png,bob\ndog/1.png,ann\ncat/1.png,bob\n", "one image to two persons"),
        ("image,person\ncat/1.png,ann\ncat/2.png\ndog/1.png,ann\n", "not of 2 columns"),
        ("image,person,ward\ncat/1.png,ann\n", "not of 3 columns"),
        ('image,person\ncat/1.png,"ann\n', "cannot be read as a table"),
    ],
)
def test_a_list_that_leaves_a_person_open_is_refused_without_quoting_it(
    source: ImageSource, tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        listed(source, tmp_path, text)
    assert not {"ann", "bob", "dog/1.png", "cat/2.png"} & set(str(caught.value).split())


def test_a_list_that_is_no_text_or_not_there_is_refused(source: ImageSource, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        listed(source, tmp_path, "image,person\ncat/1.png,änn", encoding="utf-16")
    with pytest.raises(UsageError, match="does not exist"):
        persons_from_list(source, tmp_path / "missing.csv")


def test_images_of_an_array_are_called_by_their_numbers(tmp_path: Path) -> None:
    source = open_npz(tmp_path / "data.npz", np.zeros((3, 32, 32, 3), np.uint8), np.zeros(3, np.int64))
    text = "image,person\n0,ann\n1,bob\n2,ann\n"
    assert listed(source, tmp_path, text) == [0, 1, 0]
    assert listed(source.rearranged(np.array([1, 0, 2])), tmp_path, text) == [0, 1, 1]


@pytest.mark.parametrize("other", ["cat\\1.png", "cat/1.png ", " cat/1.png"])
def test_images_whose_names_a_list_could_confuse_are_refused(tmp_path: Path, other: str) -> None:
    """Either line of the list would stand for both images, and one of them count for the wrong person."""
    source = open_images(write_images(tmp_path / "data", ("cat/1.png", "cat/2.png")), classes=("cat",))
    source.names = ("cat/1.png", other)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="rename one"):
        listed(source, tmp_path, "image,person\ncat/1.png,ann\n")


@pytest.mark.parametrize("packed", [False, True])
def test_folders_below_the_class_folders_name_persons_across_classes(tmp_path: Path, packed: bool) -> None:
    names = ("all/train/cat/ann/1.png", "all/train/cat/bob/2.png", "all/train/dog/ann/2020/1.png")
    data = write_images(tmp_path / "data", names)
    if packed:
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for name in names:
                archive.write(data / name, name)
        data = tmp_path / "data.zip"
    source = open_images(data, classes=("cat", "dog"))
    assert persons_from_folders(source).tolist() == [0, 1, 0]


def test_classes_have_to_be_declared_before_folders_below_them_are_persons(tmp_path: Path) -> None:
    """Undeclared, a single class folder is a wrapper: persons would be public classes, and their folders persons."""
    names = ("scans/ann/monday/1.png", "scans/ann/tuesday/2.png", "scans/bob/monday/1.png")
    data = write_images(tmp_path / "data", names)
    assert open_images(data).classes == ("ann", "bob")
    with pytest.raises(UsageError, match="need --classes"):
        persons_from_folders(open_images(data))
    with pytest.raises(UsageError, match="need --classes"):
        listed(open_images(data), tmp_path, "image,person\n" + "".join(f"{name},ann\n" for name in names))
    assert persons_from_folders(open_images(data, classes=("scans",))).tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["cat/1.png", "cat/ /1.png"])
def test_images_in_no_folder_of_a_person_are_refused(tmp_path: Path, name: str) -> None:
    source = open_images(write_images(tmp_path / "data", ("cat/ann/1.png", name)), classes=("cat",))
    with pytest.raises(UsageError, match="class/person/image"):
        persons_from_folders(source)


def test_images_in_no_class_folders_are_refused(tmp_path: Path) -> None:
    flat = open_images(write_images(tmp_path / "flat", ("1.png", "2.png")), classes=("scans",))
    with pytest.raises(UsageError, match="class/person/image"):
        persons_from_folders(flat)
    array = open_npz(tmp_path / "data.npz", np.zeros((3, 32, 32, 3), np.uint8), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="use --unit FILE"):
        persons_from_folders(array)


# Embedding by person


def vector(source: ImageSource, persons: list[int], **changes: object) -> np.ndarray:
    schema = ImageSchema(classes=("a", "b"), resolution=32, channels=3, inferred=())
    sums = sum_images(
        source,
        schema=schema,
        feature_map=StandInFeatures(),  # type: ignore[arg-type]
        settings=settings(unit_of_privacy="one person", **changes),
        persons=np.array(persons),
    )
    return mechanism_input(sums.take())


@pytest.mark.parametrize("images", [1, 2, 100])
def test_removing_a_person_moves_the_sums_by_what_one_image_could(tmp_path: Path, images: int) -> None:
    generator = np.random.default_rng(0)
    pixels, labels = (
        generator.integers(0, 256, (20 + images, 32, 32, 3), np.uint8),
        generator.integers(0, 2, 20 + images),
    )
    owners = generator.permutation([7] * images + [*range(20, 40)])
    others = owners != 7
    whole = vector(open_npz(tmp_path / "whole.npz", pixels, labels), owners.tolist())
    without = vector(open_npz(tmp_path / "less.npz", pixels[others], labels[others]), owners[others].tolist())
    moved = (whole - without).astype(object)
    bound = 4**26 + WEIGHT**2
    assert 0.99 * bound < np.dot(moved, moved) <= bound


def test_the_sums_do_not_depend_on_order_batches_workers_or_numbering(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", tuple(f"{'ab'[i % 2]}/{i}.png" for i in range(23)))
    source = open_images(data)
    owners = np.random.default_rng(1).integers(0, 5, 23)
    expected = vector(source, owners.tolist())
    order = np.random.default_rng(2).permutation(23)
    shuffled = source.rearranged(order)
    for changes in ({}, {"workers": 2}, {"batch_size": 5}):
        again = vector(shuffled, (100 - owners[order]).tolist(), **changes)
        assert np.array_equal(again, expected)
    assert len(expected) == 2 * (DIMENSION + 1)


def test_persons_are_given_exactly_where_they_are_the_unit(source: ImageSource) -> None:
    schema = ImageSchema(classes=("cat", "dog"), resolution=32, channels=3, inferred=())
    for unit, persons in (("one image", np.zeros(3, np.int64)), ("one person", None)):
        with pytest.raises(UsageError, match="only then"):
            sum_images(
                source,
                schema=schema,
                feature_map=StandInFeatures(),  # type: ignore[arg-type]
                settings=settings(unit_of_privacy=unit),
                persons=persons,
            )
    with pytest.raises(UsageError, match="for each image"):
        vector(source, [0, 1])
