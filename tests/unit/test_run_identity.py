"""A figure is said to be of a commit only if nothing else went into it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import run_identity

from dpmepf import shared

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@example.org")


def test_code_that_is_not_committed_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), *IDENTITY, *arguments],
            check=True,
            capture_output=True,
            env=os.environ | {"GIT_COMMITTER_DATE": "2026-01-02T04:04:05+01:00"},
        )

    for package in run_identity.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / ".gitignore").write_text("*.pyc")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(shared, "__file__", str(tmp_path / "shared" / "__init__.py"))

    clean = run_identity.version_now()
    assert run_identity.commit_time_of(f"{clean}+0123abcd") == "2026-01-02T03:04:05+00:00"
    assert run_identity.commit_time_of("0.1.0") == ""
    (tmp_path / "notes").write_text("in no package")
    (tmp_path / "embed" / "NOTE.md").write_text("no code")
    (tmp_path / "embed" / "cache.pyc").write_text("ignored")
    assert run_identity.version_now() == clean and "+" not in clean

    seen = {clean}
    for content in ("one", "two"):
        (tmp_path / "embed" / "new.py").write_text(content)
        seen.add(run_identity.version_now())
    (tmp_path / "embed" / "new.py").unlink()
    (tmp_path / "embed" / "__init__.py").write_text("changed")
    seen.add(run_identity.version_now())
    assert len(seen) == 4


def test_a_run_during_which_the_code_changed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: commands that a run calls import the code anew, so that it may have been of two versions."""
    monkeypatch.setattr(run_identity, "version_now", lambda *further: "0.1.0 after")
    run_identity.require_unchanged("0.1.0 after")
    with pytest.raises(SystemExit, match=r"from 0.1.0 before to 0.1.0 after: it was not logged"):
        run_identity.require_unchanged("0.1.0 before")
