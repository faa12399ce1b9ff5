"""The table of results says what the log says: each run once, each figure with its number of runs, nothing made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quality_log import append_to_log, distinct, key_of, read_log
from quality_table import document, history, is_current

ROOT = Path(__file__).resolve().parents[2]


def run(**changes: Any) -> dict[str, Any]:
    record = {
        "data": "MNIST",
        "method": "ours",
        "relation": "add-or-remove-one",
        "epsilon": 1.0,
        "delta": 1e-5,
        "seed": 0,
        "settings": {"preset": "standard", "steps": 2160, "bfloat16": True},
        "evaluation": "cnn, 1 seed",
        "version": "0.1.0 abcdef0123",
        "claims": {"add-or-remove-one": 1.0, "replace-one": 1.49},
        "minutes": 6.0,
        "accuracy": {"cnn": 0.968},
        "fid": 1.5,
        "kid": 0.0002,
        "extractor": "builtin encoder, 512 features",
        "machine": "a machine",
        "committed": "2026-12-01T13:00:00+00:00",
    }
    return record | changes


def rows(text: str, start: str) -> list[list[str]]:
    """Cells of the rows of any table whose first cell begins with `start`, accuracies beside published ones first."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line] for line in lines]


def test_mean_deviation_and_number_of_runs_stand_in_the_column_of_their_epsilon() -> None:
    text = document([run(), run(seed=1, accuracy={"cnn": 0.962}), run(epsilon=10.0)])
    accuracy, *every = rows(text, "dpmepf (")
    assert accuracy[1:] == ["add or remove", "Tiny ImageNet", "–", "96.5 ± 0.4 (n = 2)", "96.8 (n = 1)"]
    assert [row[2:6] for row in every] == [["1", "1.49", "96.5 ± 0.4", "1.5"], ["10", "1.49", "96.8", "1.5"]]
    assert [row[-3] for row in every] == ["2", "1"]
    assert "3 runs are in it, 0 of earlier code" in text


@pytest.mark.parametrize(
    "change",
    [
        {"relation": "replace-one"},
        {"settings": {"preset": "quick", "steps": 700, "bfloat16": True}},
        {"delta": 1e-6},
    ],
)
def test_runs_of_other_relations_settings_or_delta_are_not_averaged(change: dict[str, Any]) -> None:
    text = document([run(), run(**change)])
    assert len(rows(text, "dpmepf (")) == 4  # two in each table
    assert "(n = 2)" not in text


def test_accuracy_is_that_of_all_current_code_and_runs_are_listed_by_code_newest_first() -> None:
    versions = [run(version=name, committed=f"2026-12-01T0{hour}:00:00+00:00") for name, hour in (("b", 2), ("a", 1))]
    latest = [run(version="aa", seed=seed, accuracy={"cnn": 0.98}) for seed in (0, 1)]
    other = run(version="a", epsilon=10.0, accuracy={"cnn": 0.99}, committed="2026-12-01T01:00:00+00:00")
    accuracy, *every = rows(document([*versions, *latest, other]), "dpmepf (")
    assert accuracy[3:] == ["–", "97.4 ± 0.7 (n = 4)", "99.0 (n = 1)"]
    assert [(row[2], row[-1]) for row in every] == [("1", "aa"), ("1", "b"), ("1", "a"), ("10", "a")]


def test_scores_by_different_networks_stand_in_different_rows() -> None:
    text = document([run(), run(seed=1, extractor="Inception v3 (torch-fidelity weights), 2048 features")])
    assert [row[-4] for row in rows(text, "dpmepf (")[1:]] == ["6.0"] * 2
    assert {row[-5] for row in rows(text, "dpmepf (")[1:]} == {
        "builtin encoder",
        "Inception v3 (torch-fidelity weights)",
    }


def test_public_images_beside_the_encoders_are_named() -> None:
    settings = run()["settings"]
    chosen = run(settings=settings | {"public": ["a.zip", "b"]})
    text = document([chosen, run(settings=settings | {"prior": "birds"})])
    public = {row[2] for row in rows(text.partition("## The runs")[0], "dpmepf (")}
    assert public == {"Tiny ImageNet; chosen from a.zip, b", "Tiny ImageNet; prior of birds"}
    names = {row[0] for row in rows(text.partition("## The runs")[2], "dpmepf (")}
    assert {name.partition("; ")[2] for name in names} == {"chosen from a.zip, b", "prior of birds"}


def test_the_dp_sgd_classifier_is_called_no_synthetic_set_and_has_one_relation() -> None:
    settings = {"preset": "standard", "passes": 10, "batch_size": 1024}
    lacking = dict.fromkeys(("fid", "kid", "extractor"))
    text = document([run(method="dp-sgd", settings=settings, claims={"add-or-remove-one": 0.999}, **lacking)])
    accuracy, every = rows(text, "DP-SGD classifier, no synthetic set (")
    assert accuracy[1:3] == ["add or remove", "none"]
    assert every[3] == "–"
    assert every[5:8] == ["–", "–", "–"]


def test_dp_sgd_runs_say_how_many_channels_were_normalised_together() -> None:
    settings = {"preset": "standard", "passes": 10, "batch_size": 1024}
    outcome = dict.fromkeys(("fid", "kid", "extractor"))
    earlier, later = (run(method="dp-sgd", settings=settings | more, **outcome) for more in ({}, {"groups": 1}))
    told = {
        row[0].rpartition(", ")[2] for row in rows(document([earlier, later]), "DP-SGD classifier, no synthetic set (")
    }
    assert told == {"norm of 32 groups)", "norm of 1 group)"}


def test_published_figures_stand_where_their_epsilon_is_and_are_called_published() -> None:
    text = document([])
    mnist, cifar10 = rows(text, "PrivImage")
    assert mnist[3:] == ["–", "94.0", "97.8"]
    assert cifar10[3:] == ["–", "74.5", "78.4"]
    assert text.index("**published**") < text.index("| PrivImage")
    assert "Nothing is measured yet" in text
    assert len(rows(text, "DP-MERF: not measured yet")) == 2


def test_the_first_lines_say_who_is_ahead() -> None:
    quick = run(settings={"preset": "quick", "steps": 700, "bfloat16": True}, accuracy={"cnn": 0.99})
    text = document(
        [quick, run(accuracy={"cnn": 0.96}), run(epsilon=10.0), run(data="elsewhere", accuracy={"cnn": 0.5})]
    )
    lines = [line for line in text.splitlines() if line.startswith(("- MNIST", "- elsewhere"))]
    assert lines == [
        "- MNIST, ε = 1: **96.0 %** (n = 1); the highest published is DP-FETA 95.6.",
        "- MNIST, ε = 10: **96.8 %** (n = 1); higher are DP-FETA 98.1, PrivImage 97.8, DPDM 97.7, PDP-Diffusion 97.4, "
        "DP-LoRA 97.1.",
        "- elsewhere, ε = 1: **50.0 %** (n = 1).",
    ]


def test_the_first_lines_are_of_runs_as_the_table_has_them() -> None:
    """Planted: runs of the other relation and with more public images, all of them better, and more of them."""
    older = run(accuracy={"cnn": 0.92}, version="0.1.0 older", committed="2026-12-01T01:00:00+00:00")
    other = [run(seed=seed, accuracy={"cnn": 0.99}, relation="replace-one") for seed in range(3)]
    public = [
        run(seed=seed, accuracy={"cnn": 0.99}, settings=run()["settings"] | {"public": ["a"]}) for seed in range(3)
    ]
    quick = run(settings={"preset": "quick", "steps": 700, "bfloat16": True}, accuracy={"cnn": 0.99})
    text = document([older, run(accuracy={"cnn": 0.9}), *other, *public, quick])
    assert "- MNIST, ε = 1: **91.0 %** (n = 2)" in text


def test_presets_that_differ_in_their_number_of_steps_alone_share_a_row() -> None:
    best = run(settings={"preset": "best", "steps": 2160, "bfloat16": True}, epsilon=10.0)
    assert len(rows(document([run(), best]).partition("## The runs")[0], "dpmepf (")) == 1


def test_a_run_that_noise_made_shorter_stands_with_those_of_its_length() -> None:
    best = {"settings": {"preset": "best", "steps": 6480, "bfloat16": True}, "epsilon": 10.0}
    short = run(**best, steps_made=2160)
    for others, count in (([short], 1), ([short, run(**best, seed=1)], 2)):
        found = rows(document([run(), *others]).partition("## The runs")[0], "dpmepf (")
        assert [row[0] for row in found] == [
            f"dpmepf ({steps} steps, bfloat16)" for steps in ("2,160", "6,480")[:count]
        ]


def test_runs_of_code_that_made_other_images_stand_in_the_history_alone() -> None:
    """Planted: a figure of a release of long ago, better than today's, beside those of today."""
    before = run(epsilon=10.0, accuracy={"cnn": 0.999}, committed="2026-11-20T00:00:00+00:00", version="0.1.0 old")
    baseline = run(method="dp-merf", committed="2026-11-29T00:00:00+00:00", version="0.1.0 with-probe")
    text, earlier = document([run(), before, baseline]), history([run(), before, baseline])
    assert "99.9" not in text and "old" not in {row[-1] for row in rows(text, "dpmepf (")}
    assert "1 runs are in it, 2 of earlier code" in text
    assert [row[-1] for row in rows(earlier, "dpmepf (")] == ["old"]
    assert [row[-1] for row in rows(earlier, "DP-MERF (")] == ["with-probe"]


@pytest.mark.parametrize(
    ("method", "data", "current"),
    [
        ("ours", "MNIST", False),
        ("ours-plain", "MNIST", False),
        ("dp-merf", "MNIST", True),
        ("dp-merf", "CIFAR-10", False),  # its images were changed at random then
        ("dp-sgd", "CIFAR-10", True),
        ("real", "CIFAR-10", True),
    ],
)
def test_what_is_current_depends_on_what_changed_for_the_method_and_data(method: str, data: str, current: bool) -> None:
    """Of code just before the features of the default changed."""
    assert is_current(run(method=method, data=data, committed="2026-11-29T13:00:00+00:00")) is current
    assert is_current(run(method=method, data=data))


def test_the_private_images_themselves_have_no_epsilon_and_a_column_of_their_own() -> None:
    real = run(method="real", epsilon=None, relation=None, delta=None, settings={}, claims={}, accuracy={"cnn": 0.995})
    text = document([run(), real])
    accuracy, every = rows(text, "the private images themselves, no privacy |")
    assert accuracy[1:] == ["–", "none", "–", "–", "–", "99.5 (n = 1)"]
    assert "| ε = 10 | no privacy |" in text
    assert every[1:4] == ["–", "–", "–"]


def test_data_to_test_on_are_named_where_they_are_others() -> None:
    text = document([run(), run(evaluation="cnn, 1 seed, on other.zip", accuracy={"cnn": 0.5})])
    names = [row[0] for row in rows(text, "dpmepf (")]
    assert sum("tested on other.zip" in name for name in names) == 2


def test_a_run_is_logged_and_read_as_it_was_and_counts_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for record in (run(), run(seed=1), run(minutes=7.0)):
        append_to_log(log, record)
    assert read_log(log) == [run(), run(seed=1), run(minutes=7.0)]
    assert distinct(read_log(log)) == [run(), run(seed=1)]
    assert key_of(run()) == key_of(run(accuracy={}, machine="another"))


def test_a_line_that_was_broken_off_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_to_log(log, run())
    log.write_text(log.read_text("utf-8") + '{"data": "MN', "utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .* remove it"):
        read_log(log)


def test_the_results_in_the_documents_are_those_of_the_log() -> None:
    log = read_log(ROOT / "benchmarks" / "results.jsonl")
    assert (ROOT / "docs" / "RESULTS.md").read_text("utf-8") == document(log)
    assert (ROOT / "docs" / "RESULTS_HISTORY.md").read_text("utf-8") == history(log)
