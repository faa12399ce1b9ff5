"""`dpmepf-merge` as its users meet it: one artifact that passes the audit, or one sentence and no file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from artifact_examples import example_artifact, example_parts, forge_ledger
from click.testing import CliRunner, Result

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.audit_command import main as audit_main
from dpmepf.artifacts.hdf5_file import read_artifact, write_artifact
from dpmepf.artifacts.merge_command import main
from dpmepf.artifacts.relation import NeighbouringRelation


@pytest.fixture(autouse=True)
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Artifact]:
    """north.h5, south.h5 and west.h5 in the working folder; epsilon 1, 4 and 0.1."""
    monkeypatch.chdir(tmp_path)
    named = example_parts("north", "south", "west")
    for name, artifact in named:
        write_artifact(Path(name), artifact)
    return [artifact for _, artifact in named]


def merge(*arguments: str) -> Result:
    result = CliRunner().invoke(main, [*arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(audit_main, [*arguments])


def assert_refused(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == "" and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert not Path("all.h5").exists()


def test_merged_artifacts_make_one_that_passes_the_audit(parts: list[Artifact]) -> None:
    result = merge("north.h5", "south.h5", "-o", "all.h5", "--disjoint")
    assert result.exit_code == 0 and result.stdout == ""
    assert "2 releases, together (4, 1e-05)-differentially private, add or remove one" in result.stderr
    assert "no file can show it" in result.stderr and "Warning" not in result.stderr

    audited = audit("all.h5", "--json")
    report = json.loads(audited.stdout)
    assert audited.exit_code == 0 and report["valid"] is True
    assert 3.99 < report["epsilon"] <= 4.0 == report["claimed_epsilon"]
    assert report["delta"] == report["claimed_delta"] == 1e-5
    assert (report["relation"], report["encoder"], report["dimension"]) == ("add-or-remove-one", "builtin", 48)
    assert report["classes"] == ["cat", "dog", "Übermut 7"]
    sigmas = [artifact.ledger.sigma for artifact in parts[:2]]
    assert report["sigma"] == pytest.approx(np.hypot(*sigmas), rel=1e-15)
    assert report["sensitivity"] == parts[0].ledger.sensitivity  # in the same unit
    assert report["release_id"] is None
    assert [entry["release_id"] for entry in report["releases"]] == [one.ledger.release_id for one in parts[:2]]
    assert [entry["claimed_epsilon"] for entry in report["releases"]] == [1.0, 4.0]
    assert [entry["sigma"] for entry in report["releases"]] == sigmas
    assert "no file can show it" in report["assumption"]
    assert {"release 1: epsilon", "release 2: epsilon", "merged noise"} <= {check["name"] for check in report["checks"]}


def test_the_audits_tables_name_every_release_and_the_claim_of_all(parts: list[Artifact]) -> None:
    merge("north.h5", "west.h5", "-o", "all.h5", "--disjoint")
    result = audit("all.h5")
    assert result.exit_code == 0
    words = " ".join(result.stdout.replace("│", " ").split())
    for expected in (
        "2 releases, added up, each of 147 integers",
        "epsilon 0.1, delta 1e-05",
        "epsilon 1, delta 1e-05",
        "epsilon 1, delta 1e-05, add-or-remove-one",
        *("north + west", "Every claim holds", "is what their custodians say"),
    ):
        assert expected in words
    assert all(artifact.ledger.release_id[:8] in words for artifact in (parts[0], parts[2]))


def test_a_single_releases_audit_says_nothing_of_merging() -> None:
    report = json.loads(audit("north.h5", "--json").stdout)
    assert report["assumption"] is None and len(report["releases"]) == 1
    assert report["releases"][0]["release_id"] == report["release_id"] is not None
    assert "merged" not in audit("north.h5").stdout


def test_merged_artifacts_can_be_merged_again() -> None:
    assert merge("south.h5", "west.h5", "-o", "two.h5", "--disjoint").exit_code == 0
    assert merge("north.h5", "two.h5", "-o", "all.h5", "--disjoint").exit_code == 0
    assert merge("north.h5", "south.h5", "west.h5", "-o", "at-once.h5", "--disjoint").exit_code == 0
    assert Path("all.h5").read_bytes() == Path("at-once.h5").read_bytes()
    assert json.loads(audit("all.h5", "--json").stdout)["valid"]


def test_without_disjoint_it_says_what_that_means_and_makes_nothing() -> None:
    result = merge("north.h5", "south.h5", "-o", "all.h5")
    assert_refused(result, 2, "--disjoint", "no record, or person, is in two", "would add up")


def test_artifacts_that_do_not_belong_together_are_refused_by_name() -> None:
    write_artifact(Path("other.h5"), example_artifact(relation=NeighbouringRelation.REPLACE_ONE))
    result = merge("north.h5", "south.h5", "other.h5", "-o", "all.h5", "--disjoint")
    assert_refused(result, 1, "other.h5 cannot be merged with north.h5", "replace-one, not add-or-remove-one")


def test_one_that_fails_its_audit_is_refused_by_name() -> None:
    forge_ledger(Path("south.h5"), epsilon=0.5)
    result = merge("north.h5", "south.h5", "-o", "all.h5", "--disjoint")
    assert_refused(result, 1, "south.h5 claims what its numbers do not support (epsilon)")


def test_the_same_release_twice_is_refused() -> None:
    Path("copy.h5").write_bytes(Path("north.h5").read_bytes())
    for again in ("copy.h5", "north.h5"):
        result = merge("north.h5", again, "-o", "all.h5", "--disjoint")
        assert_refused(result, 1, f"{again} holds the release", "so does north.h5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["north.h5"], "name two or more"),
        (["north.h5", "none.h5"], "none.h5 does not exist"),
        (["north.h5", "south.h5", "-o", "nowhere/all.h5"], "the folder nowhere does not exist"),
    ],
)
def test_other_requests_that_cannot_be_met_are_refused(arguments: list[str], words: str) -> None:
    result = merge("-o", "all.h5", "--disjoint", *arguments)
    assert_refused(result, 1 if "nowhere" in words else 2, words)


def test_an_existing_output_is_kept_without_force() -> None:
    Path("all.h5").write_text("precious")
    Path("all.h5.sig").write_text("of the precious file")
    result = merge("north.h5", "south.h5", "-o", "all.h5", "--disjoint")
    assert result.exit_code == 2 and "--force" in result.stderr
    assert Path("all.h5").read_text() == "precious" and Path("all.h5.sig").exists()
    result = merge("north.h5", "south.h5", "-o", "all.h5", "--disjoint", "--force")
    assert result.exit_code == 2 and "exists and is no artifact" in result.stderr
    shutil.copyfile("north.h5", "all.h5")
    Path("all.h5.sig").write_bytes(bytes(64))
    assert merge("north.h5", "south.h5", "-o", "all.h5", "--disjoint", "--force").exit_code == 0
    assert not Path("all.h5.sig").exists()
    assert len(read_artifact(Path("all.h5")).ledger.releases) == 2


@pytest.mark.parametrize("output", ["south.h5", "./south.h5", "link.h5"])
def test_an_input_is_never_the_output_even_by_force(output: str) -> None:
    before = Path("south.h5").read_bytes()
    Path("link.h5").symlink_to("south.h5")
    result = merge("north.h5", "south.h5", "-o", output, "--disjoint", "--force")
    assert_refused(result, 2, "is one of the artifacts to merge")
    assert Path("south.h5").read_bytes() == before


def test_releases_of_data_sets_of_one_name_are_warned_of() -> None:
    write_artifact(Path("again.h5"), example_artifact(dataset_name="North "))
    result = merge("north.h5", "again.h5", "-o", "all.h5", "--disjoint")
    assert result.exit_code == 0
    assert "2 of the releases are of a data set called north" in result.stderr
    assert (
        "2 of the releases are of a data set called north" in json.loads(audit("all.h5", "--json").stdout)["assumption"]
    )


def test_replaced_records_have_to_stay_within_their_release() -> None:
    for name in ("one.h5", "two.h5"):
        write_artifact(Path(name), example_artifact(dataset_name=name, relation=NeighbouringRelation.REPLACE_ONE))
    assert "is only replaced within its own" in merge("one.h5", "two.h5", "-o", "all.h5", "--disjoint").stderr


@pytest.mark.parametrize("kind", ["pipe", "long name"])
def test_an_output_that_is_no_file_is_refused_even_with_force(kind: str, tmp_path: Path) -> None:
    output = tmp_path / ("pipe" if kind == "pipe" else 300 * "x")
    if kind == "pipe":
        os.mkfifo(output)
    result = merge("north.h5", "south.h5", "-o", output, "--disjoint", "--force")
    assert_refused(result, 2 if kind == "pipe" else 1, "a device or a pipe" if kind == "pipe" else "too long")
    assert kind == "long name" or output.is_fifo()
