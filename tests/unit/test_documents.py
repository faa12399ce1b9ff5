"""What the documents point at exists: the test behind a promise, the file behind a link, a command's options."""

from __future__ import annotations

import re
import shlex
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


MODULES = {"dpmepf.embed": "dpmepf-embed", "dpmepf.synthesize": "dpmepf-synth"}  # as torchrun names them


def shown_commands(document: Path) -> list[list[str]]:
    """The words of each line in a block of commands that starts one of ours, without its comment."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found = []
    for line in (line for language, block in blocks if not language for line in block.splitlines()):
        if line.startswith(("dpmepf-", "torchrun ")):
            words = shlex.split(line, comments=True)
            if words[0] == "torchrun":
                module = words.index("-m") + 1
                words = [MODULES[words[module]], *words[module + 1 :]]
            found.append(words)
    return found


def test_the_commands_of_the_readme_can_be_typed_one_after_the_other() -> None:
    """They have the options that are shown, and none writes where an earlier one did."""
    shown = shown_commands(ROOT / "README.md")
    runner = CliRunner()
    helps = {entry.name: runner.invoke(entry.load(), ["--help"]).output for entry in COMMANDS}
    assert {words[0] for words in shown} == set(helps) - {"dpmepf-pretrain"}
    for words in shown:
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"{option}\b", helps[words[0]]), words
    outputs = [
        words[words.index("--output") + 1] if "--output" in words else "artifact.h5"
        for words in shown
        if words[0] == "dpmepf-embed" and "--dry-run" not in words
    ]
    assert len(outputs) == len(set(outputs)) > 3


COMMANDS = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name.startswith("dpmepf-")]


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_explains_itself_when_asked_shortly(entry: metadata.EntryPoint) -> None:
    result = CliRunner().invoke(entry.load(), ["-h"])
    assert (result.exit_code, result.output.startswith("Usage: ")) == (0, True)
