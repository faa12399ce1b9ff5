"""The schema: declared values win, inference looks at the form alone, and what was inferred is marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpmepf.shared import schema as schema_module
from dpmepf.shared.image_errors import ClassesError
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.schema import ImageSchema, SchemaError, infer_schema, nearest_resolution


def write_images(root: Path, *, sizes: list[tuple[int, int]], modes: list[str]) -> Path:
    for index, (size, mode) in enumerate(zip(sizes, modes, strict=True)):
        folder = root / "d" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(folder / f"{index}.png")
    return root / "d"


def test_everything_is_inferred_from_the_form_and_marked(tmp_path):
    source = open_images(write_images(tmp_path, sizes=[(40, 30), (30, 31), (64, 64)], modes=["L", "1", "LA"]))
    assert infer_schema(source) == ImageSchema(
        classes=("a", "b"), resolution=28, channels=1, inferred=("classes", "resolution", "channels")
    )


def test_declared_values_win_and_are_not_marked(tmp_path):
    path = write_images(tmp_path, sizes=[(32, 32)] * 2, modes=["L", "L"])
    source = open_images(path, classes=("b", "a", "c"))
    assert infer_schema(source, resolution=64) == ImageSchema(
        classes=("b", "a", "c"), resolution=64, channels=1, inferred=("channels",)
    )
    assert infer_schema(source, resolution=64, channels=3, strict=True).inferred == ()


def test_one_coloured_image_makes_the_set_coloured(tmp_path):
    source = open_images(write_images(tmp_path, sizes=[(32, 32)] * 3, modes=["L", "RGB", "L"]))
    assert infer_schema(source).channels == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_the_schema_does_not_depend_on_the_number_of_workers(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(schema_module, "_RANGE", 2)
    sizes = [(32, 40), (33, 32), (64, 65), (64, 64), (64, 99), (8, 8), (9, 9)]
    source = open_images(write_images(tmp_path, sizes=sizes, modes=["L"] * 6 + ["RGB"]))
    found = infer_schema(source, workers=workers)
    assert (found.resolution, found.channels) == (64, 3)


def test_equally_frequent_sizes_give_the_smaller(tmp_path):
    source = open_images(write_images(tmp_path, sizes=[(64, 64), (32, 32)], modes=["L", "L"]))
    assert infer_schema(source).resolution == 32


@pytest.mark.parametrize(
    ("side", "resolution"),
    [(1, 28), (8, 28), (28, 28), (30, 28), (31, 32), (48, 32), (49, 64), (96, 64), (97, 128), (4000, 128)],
)
def test_a_size_is_taken_to_the_nearest_supported_one(side, resolution):
    assert nearest_resolution(side) == resolution


def test_strict_names_every_option_that_is_missing(tmp_path):
    path = write_images(tmp_path, sizes=[(32, 32)], modes=["L"])
    with pytest.raises(SchemaError, match="--classes, --channels too"):
        infer_schema(open_images(path), resolution=32, strict=True)
    with pytest.raises(SchemaError, match="declare --resolution too"):
        infer_schema(open_images(path, classes=["a"]), channels=1, strict=True)


def test_arrays_need_no_scan(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 32, 40, 3), np.uint8))
    assert infer_schema(open_images(tmp_path / "a.npz"), workers=0) == ImageSchema(
        classes=("unlabelled",), resolution=32, channels=3, inferred=("classes", "resolution", "channels")
    )


def test_labels_that_occur_do_not_change_the_schema(tmp_path):
    for name, labels in (("one.npz", [0, 0, 0]), ("all.npz", [0, 1, 2])):
        np.savez(tmp_path / name, x=np.zeros((3, 32, 32), np.uint8), y=labels, classes=np.array(["a", "b", "c"]))
    assert infer_schema(open_images(tmp_path / "one.npz")) == infer_schema(open_images(tmp_path / "all.npz"))


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_readable_image_there_is_nothing_to_infer_from(tmp_path, damaged):
    (tmp_path / "cat").mkdir()
    if damaged:
        (tmp_path / "cat" / "a.png").write_text("text")
    source = open_images(tmp_path)
    with pytest.raises(SchemaError, match="declare --resolution and --channels"):
        infer_schema(source)
    assert infer_schema(source, resolution=32, channels=3).inferred == ("classes",)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"resolution": 48}, SchemaError, "28, 32, 64, 128"),
        ({"channels": 2}, SchemaError, "1 .grey. or 3"),
        ({"classes": ("a", "a")}, ClassesError, "twice"),
        ({"classes": ()}, ClassesError, "must be 1 to"),
        ({"classes": ("../x",)}, ClassesError, "cannot name a class"),
        ({"inferred": ("channels", "classes")}, SchemaError, "in this order"),
        ({"inferred": ("labels",)}, SchemaError, "must be among"),
    ],
)
def test_a_schema_that_is_not_supported_is_refused(changes, error, words):
    valid: dict[str, Any] = {"classes": ("a",), "resolution": 32, "channels": 3, "inferred": ()}
    ImageSchema(**valid)
    with pytest.raises(error, match=words) as caught:
        ImageSchema(**(valid | changes))
    assert caught.value.exit_code == 2
