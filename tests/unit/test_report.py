"""`report.html` stands alone, repeats the ledger's claim, and lets no name from an artifact become markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dpmepf.synthesize.generator import GeneratorConfiguration, build_generator
from dpmepf.synthesize.pictures import (
    CURVE_FILE,
    PREVIEW_FILE,
    preview_classes,
    preview_images,
    write_curve,
    write_preview,
)
from dpmepf.synthesize.report import REPORT_FILE, privacy_claim, sizes_sentence, unjudged_sentence, write_report
from dpmepf.synthesize.settings import PRESETS

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&"


class Checker(HTMLParser):
    """Collects tags and outside references; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def release(dataset: str, identifier: str = "0000") -> dict[str, Any]:
    return {"release_id": identifier, "dataset_name": dataset, "epsilon": 0.2, "delta": 1e-5}


def record(**artifact: Any) -> dict[str, Any]:
    return {
        "artifact": {
            "file": "artifact.h5",
            "sha256": "ab" * 32,
            "release_id": "0000",
            "releases": [release("digits")],
            "dataset_name": "digits",
            "epsilon": 0.2,
            "delta": 1e-5,
            "relation": "add-or-remove-one",
            "unit_of_privacy": "one image",
            "noise_std_counts": 38.2,
            "mechanism": "discrete-gaussian",
            "inferred_schema": ["resolution"],
            "encoder": "builtin",
            "features": "default",
            "feature_dimension": 15360,
            "resolution": 28,
            "channels": 1,
            **artifact,
        },
        "settings": PRESETS["best"].to_dict(),
        "device": "cpu",
        "probed": True,
        "versions": {"dpmepf": "0.1.0"},
        "generator": {"parameters": 1_234_567, "multiply_adds_per_image": 12_300_000, "random_changes": None},
        "output": {"format": "folder", "images": 42, "relabelled": True},
        "public": [],
        "prior": None,
        "classes": [
            {
                "name": HOSTILE,
                "folder": "script",
                "noisy_count": -3.25,
                "size": 0.0,
                "images": 0,
                "public_images": 0,
                "unjudged_images": 0,
            }
        ],
        "timings": {
            "training_seconds": 61.0,
            "sampling_seconds": 1.0,
            "total_seconds": 3725.0,
            "training_images_per_second": 10.0,
        },
        "losses": {"final": 0.1, "every_step": [0.3, 0.1]},
    }


def checked_report(folder: Path, values: dict[str, Any]) -> tuple[Checker, str]:
    for name in (PREVIEW_FILE, CURVE_FILE):
        Image.new("L", (4, 4)).save(folder / name)
    write_report(folder, values)
    text = (folder / REPORT_FILE).read_text("utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker, text


def test_the_report_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    checker, text = checked_report(tmp_path, record())
    assert len(checker.references) == 2
    assert all(reference.startswith("data:image/png;base64,") for reference in checker.references)
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    assert not re.search(r"https?:|@import|url\(", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_the_report_states_the_claim_and_what_was_made(tmp_path: Path) -> None:
    checker, _ = checked_report(tmp_path, record())
    text = " ".join(checker.text)
    for expected in ("(ε = 0.2, δ = 1e-05)-differentially private", "adding or removing one image", "42", "1 h 2 min"):
        assert expected in text
    assert "treated as public: resolution" in text


def test_the_report_states_how_much_images_are_varied(tmp_path: Path) -> None:
    values = record()
    assert "Size of random changes" not in checked_report(tmp_path, values)[1]
    values["generator"]["random_changes"] = {"zoom": 0.104, "turn": 0.2}
    assert "zoom 0.10, turn 0.20" in checked_report(tmp_path, values)[1]


def test_replacing_is_claimed_for_the_other_relation() -> None:
    assert "for replacing one image" in privacy_claim(record(relation="replace-one")["artifact"])


def test_merged_releases_are_all_named_and_claimed_on_their_custodians_word(tmp_path: Path) -> None:
    both = [release("north", "id-1"), release("south", "id-2")]
    checker, _ = checked_report(
        tmp_path, record(releases=both, dataset_name="north + south", unit_of_privacy="one person")
    )
    text = " ".join(checker.text)
    assert "The 2 releases these images come from are together (ε = 0.2" in text
    assert "if no person is in two of them, as their custodians say" in text
    for name in ("north + south", "id-1 of “north”", "id-2 of “south”"):
        assert name in text


def test_names_from_an_artifact_are_text_not_markup(tmp_path: Path) -> None:
    names = ("file", "release_id", "dataset_name", "unit_of_privacy", "mechanism", "encoder", "features", "relation")
    values = record(**dict.fromkeys(names, HOSTILE), inferred_schema=[HOSTILE], releases=[release(HOSTILE, HOSTILE)])
    values["versions"] = {HOSTILE: HOSTILE}
    values["device"] = HOSTILE
    checker, text = checked_report(tmp_path, values)
    assert "script" not in checker.tags
    assert "<script" not in text


@pytest.mark.parametrize("class_count", [1, 2, 24, 25, 200, 1000])
def test_the_preview_shows_whole_rows_class_by_class(class_count: int) -> None:
    classes = preview_classes(class_count)
    assert len(classes) <= 720
    assert list(classes) == sorted(classes)
    if class_count <= 240:
        assert set(classes) == set(range(class_count))


@pytest.mark.parametrize(("class_count", "channels", "rows"), [(1, 3, 8), (3, 1, 3), (30, 1, 8)])
def test_the_preview_has_a_row_of_twelve_enlarged_images(
    class_count: int, channels: int, rows: int, tmp_path: Path
) -> None:
    configuration = GeneratorConfiguration(
        class_count=class_count,
        resolution=28,
        channels=channels,
        base_channels=2,
        second_convolution=False,
        latent_dimension=4,
    )
    generator = build_generator(configuration, seed=0, device="cpu").eval()
    names = [f"a rather long class name {index}" for index in range(class_count)]
    write_preview(tmp_path, preview_images(generator), names)
    first = (tmp_path / PREVIEW_FILE).read_bytes()
    with Image.open(tmp_path / PREVIEW_FILE) as picture:
        assert picture.height == rows * 58 + 2
        assert picture.width >= 12 * 58 + 2
    write_preview(tmp_path, preview_images(generator), names)
    assert (tmp_path / PREVIEW_FILE).read_bytes() == first  # the same latent vectors every time


@pytest.mark.parametrize("losses", [[0.5], [0.5, 0.5], [1.0, 0.1, -0.01], [1.0 / (i + 1) for i in range(300)]])
def test_the_curve_can_be_drawn_of_any_number_of_steps(losses: list[float], tmp_path: Path) -> None:
    write_curve(tmp_path, losses)
    with Image.open(tmp_path / CURVE_FILE) as picture:
        assert picture.size == (960, 432)


def test_classes_without_images_and_counts_of_no_images_are_explained(tmp_path: Path) -> None:
    values = record()
    values["classes"][0]["size"] = -2.5
    values["classes"].append(values["classes"][0] | {"name": "full", "images": 42})
    sentence = sizes_sentence(values)
    assert sentence.startswith(f"1 of 2 classes have no images ({HOSTILE})")
    assert "38, one standard deviation" in sentence
    checker, _ = checked_report(tmp_path, values)
    assert sentence in checker.text
    values["classes"][0]["size"] = 6_000.0  # Planted: five images of many large classes
    assert "next to no records" not in sizes_sentence(values)
    assert "so few --samples" in sizes_sentence(values)
    del values["classes"][0]
    assert sizes_sentence(values) == ""
    assert "numbers neither of images nor of persons" in sizes_sentence(record(unit_of_privacy="one person"))


def test_images_that_the_class_means_did_not_confirm_are_counted(tmp_path: Path) -> None:
    values = record()
    assert unjudged_sentence(values) == ""
    values["classes"][0] |= {"images": 5_000, "unjudged_images": 50}
    assert unjudged_sentence(values) == ""  # as six rounds leave of any class
    values["classes"][0]["unjudged_images"] = 1_234
    sentence = unjudged_sentence(values)
    assert "1,234 have the class that they were drawn for" in sentence
    assert sentence in checked_report(tmp_path, values)[0].text


@pytest.mark.parametrize(("probed", "word"), [(True, "yes"), (False, "no")])
def test_a_probe_that_could_not_be_used_is_not_reported(tmp_path: Path, probed: bool, word: str) -> None:
    """As with one class, whatever the settings say."""
    text = checked_report(tmp_path, record() | {"probed": probed})[1]
    assert re.search(rf"Probe of the noise</t[hd]>\s*<td[^>]*>{word}<", text)


def test_the_caption_says_whether_the_pictures_are_the_first_drawn_or_the_first_kept(tmp_path: Path) -> None:
    for relabelled, words in ((False, "Not selected"), (True, "which leaves out images of unclear class")):
        values = record()
        values["output"]["relabelled"] = relabelled
        assert words in checked_report(tmp_path, values)[1]
