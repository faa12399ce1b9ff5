"""The choices of `make bench-choices`: features of norm at most 1 that can be released and trained towards."""

from __future__ import annotations

import argparse
from pathlib import Path

import baseline_set
import numpy as np
import pytest
import release_choices
import torch
from feature_choices import CHOICES, Form, SecondOrder, builtin
from quality_log import append_to_log, read_log
from synthesis_stand_ins import small_settings, squares
from torch import Tensor

from dpmepf.embed.summing import ClassSums
from dpmepf.synthesize import labelling, training
from dpmepf.synthesize.targets import ClassTargets

PUBLIC = 80


def images_of(form: Form, count: int, *, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, form.channels, form.resolution, form.resolution), generator=random).byte()


@pytest.mark.parametrize("form", [Form(32, 3), Form(28, 1)], ids=str)
@pytest.mark.parametrize("name", CHOICES)
def test_features_have_norm_at_most_1_the_told_dimension_and_a_gradient(name: str, form: Form) -> None:
    features = CHOICES[name][1](form, images_of(form, PUBLIC))
    images = images_of(form, 3, seed=1)
    vectors = features(images)
    assert vectors.shape == (3, features.dimension)
    assert float(vectors.norm(dim=1).max()) <= 1 + 1e-5
    assert float(vectors.norm(dim=1).min()) > 0.5  # much of the norm is used, or sums would tell less than they may
    assert [segment.start for segment in features.segments] == [0, *(s.stop for s in features.segments[:-1])]
    assert features.segments[-1].stop == features.dimension
    assert all(segment.channels * segment.positions == segment.stop - segment.start for segment in features.segments)
    pixels = (images.float() / 255).requires_grad_()
    torch.testing.assert_close(features(pixels), vectors, atol=1e-4, rtol=0)
    features(pixels).square().sum(dim=0)[::7].sum().backward()
    assert float(pixels.grad.abs().max()) > 0


def test_the_same_public_images_make_the_same_features() -> None:
    form = Form(32, 3)
    made = [CHOICES["second-order"][1](form, images_of(form, PUBLIC)).description for _ in range(2)]
    assert made[0] == made[1]


def test_second_order_features_are_the_outer_product_of_unit_vectors() -> None:
    form = Form(32, 3)
    features = SecondOrder(builtin(form), form, images_of(form, PUBLIC), directions=5)
    images = images_of(form, 4, seed=1)
    vectors = features(images)
    z = (features.features(images) - features.constant1) @ features.constant0
    u = torch.nn.functional.normalize(torch.cat([features.constant2.expand(4, 1), z], dim=1), dim=1)
    torch.testing.assert_close(vectors @ vectors.T, (u @ u.T).square())


def test_shares_add_up_to_1() -> None:
    form = Form(32, 3)
    equal = CHOICES["equal-shares"][1](form, images_of(form, PUBLIC)).description.layer_weights
    assert equal == pytest.approx([1 / 8] * 8)
    late = builtin(form, layers=slice(-2, None), shares=range(1, 9)).description
    assert (late.layer_weights, len(late.pooling)) == (pytest.approx((7 / 15, 8 / 15)), 2)


def test_relative_noise_is_that_of_the_means_without_their_noise() -> None:
    """Means drawn with known noise around known centres."""
    random = np.random.default_rng(0)
    classes, dimension, variance = 10, 50_000, 1e-4
    true = random.normal(size=(classes, dimension)) * 0.02
    noisy = torch.from_numpy((true + random.normal(size=true.shape) * variance**0.5).astype(np.float32))
    targets = ClassTargets(means=noisy, counts=np.ones(classes), noise_variance=np.full(classes, variance))
    spread = np.sqrt(((true - true.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert release_choices.relative_noise(targets) == pytest.approx((dimension * variance) ** 0.5 / spread, rel=0.01)


def test_a_run_is_logged_with_its_scores_and_makes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second release is of the sums that the first one kept, with noise of its own."""
    monkeypatch.setattr(training, "RECALIBRATION_IMAGES", 20)
    monkeypatch.setattr(labelling, "IMAGES", 60)
    monkeypatch.setattr(release_choices, "settings_for", lambda *_, **changes: small_settings(steps=2))
    monkeypatch.setattr(
        release_choices, "scores", lambda *_: {"accuracy": {"cnn": 0.5}, "fid": 9.5, "kid": 0.25, "extractor": "none"}
    )
    x = (squares(3, 20) * 255).byte().permute(0, 2, 3, 1).numpy()
    sets = {"classes": np.array(["a", "b", "c"]), "y": np.repeat(np.arange(3), 20)}
    np.savez(tmp_path / "squares.npz", x=x, **sets)
    np.savez(tmp_path / "public.npz", x=x, **sets)
    options = argparse.Namespace(
        data=tmp_path / "squares.npz",
        public=tmp_path / "public.npz",
        keep=tmp_path / "k",
        preset="quick",
        steps=None,
        images=45,
        delta=1e-5,
    )
    plan = release_choices.planned("1x1", 50.0, 0, options)
    (tmp_path / "run").mkdir()
    (tmp_path / "sums").mkdir()
    monkeypatch.setattr(baseline_set, "SECONDS_BETWEEN_SUMS", 0.0)
    again = release_choices.one_run(plan, options, tmp_path / "run", tmp_path / "sums")
    with monkeypatch.context() as without:
        without.setattr(ClassSums, "add", None)
        record = release_choices.one_run(plan, options, tmp_path / "run", tmp_path / "sums")
    assert record["noise"] != again["noise"]
    assert 0 <= record["class_means"] <= 1
    assert record["dimension"] == 960
    assert (tmp_path / "k" / "squares-1x1-0.png").is_file()
    append_to_log(tmp_path / "log", record)
    text = release_choices.document(read_log(tmp_path / "log"))
    assert "## squares, ε = 50" in text
    assert "| 1x1 | averages over the whole image | 960 |" in text
    assert "| 50.0 | 9.5 | 0.2500 |" in text


RUN = {
    "data": "squares",
    "method": "1x1",
    "relation": "add-or-remove-one",
    "epsilon": 1.0,
    "delta": 1e-5,
    "seed": 0,
    "settings": {"preset": "quick", "steps": 2, "bfloat16": True, "images": 9},
    "evaluation": "cnn",
    "version": "a",
    "dimension": 960,
    "noise": 0.5,
    "class_means": 0.5,
    "corrected": True,
    "accuracy": {"cnn": 0.5},
    "fid": 9.5,
    "kid": 0.25,
    "extractor": "one, of 3",
    "committed": "2026-12-01T00:00:00+00:00",
}
SHORTER = {"settings": RUN["settings"] | {"steps": 1}}


@pytest.mark.parametrize(
    "change", [{"delta": 1e-6}, {"extractor": "another"}, {"epsilon": 2.0}, {"version": "b"}, SHORTER]
)
def test_runs_that_do_not_compare_stand_in_tables_of_their_own(change: dict[str, object]) -> None:
    assert release_choices.table([RUN, {**RUN, "seed": 1}]).count("## ") == 1
    assert release_choices.table([RUN, {**RUN, "seed": 1, **change}]).count("## ") == 2


def test_a_row_tells_its_runs_and_how_many_were_in_float32() -> None:
    other = {**RUN, "seed": 1, "settings": RUN["settings"] | {"bfloat16": False}}
    assert "| 2 | 2 | 1 |" in release_choices.table([RUN, other])  # labels corrected, runs, in float32


@pytest.mark.parametrize(
    ("method", "committed", "row", "reference"),
    [
        ("default", "2026-12-01", "| default |", "*default*"),
        ("default", "2026-11-30", "| mixed |", "*mixed*"),
        ("2x2", "2026-11-30", "| default |", "*mixed*"),
        ("1x1", "2026-11-30", "| 1x1 |", "*mixed*"),
    ],
)
def test_runs_of_code_with_another_default_have_the_names_of_today(
    method: str, committed: str, row: str, reference: str
) -> None:
    text = release_choices.table([RUN | {"method": method, "committed": f"{committed}T00:00:00+00:00"}])
    assert row in text and f"Choices differ from {reference}." in text


def test_the_document_is_that_of_the_log() -> None:
    root = Path(__file__).resolve().parents[2]
    log = read_log(root / "benchmarks" / "choices.jsonl")
    assert (root / "docs" / "CHOICES.md").read_text("utf-8") == release_choices.document(log)
