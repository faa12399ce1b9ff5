"""What the documents point at exists: the test behind a promise, the file behind a link."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "embed", "artifacts", "shared/weights") for path in (ROOT / folder).glob("*.md")
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_and_links_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    tests = re.findall(r"`(tests/[\w/]+\.py)`", text)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", text) if not link.startswith("http")]
    missing = [name for name in tests if not (ROOT / name).is_file()]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_every_promise_of_the_threat_model_has_a_test() -> None:
    text = (ROOT / "docs" / "THREAT_MODEL.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| who", "| ---"))]
    assert len(rows) > 8
    assert all("`tests/" in row.split("|")[4] for row in rows)


COMMANDS = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name.startswith("dpmepf-")]


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_explains_itself_when_asked_shortly(entry: metadata.EntryPoint) -> None:
    result = CliRunner().invoke(entry.load(), ["-h"])
    assert (result.exit_code, result.output.startswith("Usage: ")) == (0, True)
