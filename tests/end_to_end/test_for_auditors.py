"""The auditor's page: its own lines, run as they stand, pass for an honest artifact and fail for forged ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_examples import example_artifact, example_parts, forge_ledger

from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.artifacts.merging import merge_artifacts
from dpmepf.artifacts.relation import NeighbouringRelation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "FOR_AUDITORS.md"


def page_program() -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL))


def run_page(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import warnings; warnings.simplefilter('ignore')\n" + page_program()
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("relation", NeighbouringRelation)
@pytest.mark.parametrize("non_negative", [True, False])
def test_the_pages_own_lines_accept_an_honest_artifact(
    relation: NeighbouringRelation, non_negative: bool, tmp_path: Path
) -> None:
    artifact = example_artifact(relation=relation, non_negative_features=non_negative)
    write_artifact(tmp_path / "artifact.h5", artifact)
    result = run_page(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Opacus RDP:" in result.stdout


@pytest.mark.parametrize("epsilon", [0.01, 20.0, 1000.0])
def test_the_pages_own_lines_accept_an_honest_artifact_at_any_epsilon(epsilon: float, tmp_path: Path) -> None:
    """Where the two terms of delta nearly cancel, and where e^epsilon is no float."""
    write_artifact(tmp_path / "artifact.h5", example_artifact(epsilon=epsilon))
    result = run_page(tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "forgery",
    [
        {"epsilon": 0.9},
        {"delta": 1e-6},
        {"sensitivity_squared": "1000000"},
        {"relation": "replace-one"},
        {"feature_dimension": 47},
        {"opacus_state": {"history": [[100.0, 1.0, 1]], "mechanism": "rdp"}},
    ],
)
def test_the_pages_own_lines_reject_a_forged_ledger(forgery: dict[str, Any], tmp_path: Path) -> None:
    write_artifact(tmp_path / "artifact.h5", example_artifact())
    forge_ledger(tmp_path / "artifact.h5", **forgery)
    result = run_page(tmp_path)
    assert result.returncode == 1
    assert "AssertionError" in result.stderr


def test_the_pages_own_lines_accept_a_merged_artifact_and_print_its_claim(tmp_path: Path) -> None:
    write_artifact(tmp_path / "artifact.h5", merge_artifacts(example_parts("a", "b", "c")))
    result = run_page(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "claim: 4.0 1e-05"


@pytest.mark.parametrize(
    "forgery",
    [
        {"release": 2, "epsilon": 1.0},
        {"release": 3, "relation": "replace-one"},
        {"release": 3, "unit_of_privacy": "one person"},
        {"release": 1, "release_id": "copied from the second"},
        {"noise_sigma": 1e12},
    ],
    ids=str,
)
def test_the_pages_own_lines_reject_a_forged_merged_ledger(forgery: dict[str, Any], tmp_path: Path) -> None:
    merged = merge_artifacts(example_parts("a", "b", "c"))
    if "release_id" in forgery:
        forgery = forgery | {"release_id": merged.ledger.releases[1].release_id}
    write_artifact(tmp_path / "artifact.h5", merged)
    forge_ledger(tmp_path / "artifact.h5", **forgery)
    result = run_page(tmp_path)
    assert result.returncode == 1
    assert "AssertionError" in result.stderr


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump (hdf5-tools) is not installed")
def test_h5dump_shows_five_data_sets(tmp_path: Path) -> None:
    write_artifact(tmp_path / "artifact.h5", example_artifact())
    result = subprocess.run(["h5dump", "--header", "artifact.h5"], cwd=tmp_path, capture_output=True, check=True)
    assert result.stdout.count(b"DATASET ") == 5
