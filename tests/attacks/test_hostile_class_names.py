"""Class names come with the artifact: none may leave the output folder, hide in it, or fall on another's folder."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmepf.synthesize.sampling import class_folder_names, write_image_folders

HOSTILE = (
    "../../escaped",
    "/etc/passwd",
    "..",
    ".",
    ".hidden",
    "",
    "a/b",
    "a\\b",
    "C:\\windows",
    "nul",
    "COM1.txt",
    "name\0null",
    "line\nbreak",
    "\x1b[31mred",
    "trailing. . ",
    "\u202etxt.exe",
    "x" * 1000,
    "é" * 300,
    "~",
    "-rf",
    "$(reboot)",
    "\ud800",
)


def assert_safe(names: tuple[str, ...]) -> None:
    for name in names:
        assert name not in ("", ".", "..")
        assert not name.startswith(".")
        assert not name.endswith((".", " "))
        assert not set(name) & set('/\\:*?"<>|\0\n\x1b\u202e')
        assert all(character.isprintable() for character in name)
        assert len(name.encode("utf-8")) <= 200
    assert len({unicodedata.normalize("NFC", name.casefold()) for name in names}) == len(names)


def test_hostile_names_become_plain_folders() -> None:
    assert_safe(class_folder_names(HOSTILE))


@given(st.lists(st.text(max_size=150), min_size=1, max_size=30))
def test_any_names_become_safe_distinct_folders(names: list[str]) -> None:
    folders = class_folder_names(names)
    assert len(folders) == len(names)
    assert_safe(folders)


def test_ordinary_names_stay_as_they_are() -> None:
    names = ("0", "cat", "T-shirt_top", "großer Hund", "猫", "v1.2 (new)")
    assert class_folder_names(names) == names


@pytest.mark.parametrize(
    "names", [("Cat", "cat", "CAT"), ("a/b", "a_b", "a\\b"), ("", " ", "."), ("a", "0001-a", "a"), ("é", "e\u0301")]
)
def test_names_that_fall_together_are_kept_apart(names: tuple[str, ...]) -> None:
    assert_safe(class_folder_names(names))


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "inside" / "out"
    folder.mkdir(parents=True)
    batches = iter([(np.zeros((1, 1, 4, 4), dtype=np.uint8), index) for index in range(len(HOSTILE))])
    write_image_folders(folder, batches, HOSTILE)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == len(HOSTILE)
    assert all(path.parent.parent == folder / "images" for path in written)
