"""The bundle for a machine without a network: whole or not there, every wheel under its hash and from its place."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from bundle_examples import REVISION, ROOT, load_make_bundle, write_small_wheels, write_wheel

NOBODY_LISTENS = "http://127.0.0.1:9/simple"


@pytest.fixture
def program() -> ModuleType:
    return load_make_bundle()


@pytest.fixture
def index(tmp_path: Path) -> str:
    """A package index with torch 3.0 and torchvision 1.0."""
    for name, version in {"torch": "3.0", "torchvision": "1.0"}.items():
        wheel = write_wheel(tmp_path / "index" / name, name, version, files={f"{name}.py": ""})
        (wheel.parent / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel.name}">{wheel.name}</a>')
    return (tmp_path / "index").as_uri()


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_requirements_name_each_wheel_with_its_version_and_hash(program: ModuleType, tmp_path: Path) -> None:
    ours, columns, addition = write_small_wheels(tmp_path / "wheels")
    assert program.write_requirements(tmp_path) == {"dpmepf": "0.1.0", "addition": "1.2", "columns": "3.1"}
    assert (tmp_path / "requirements.txt").read_text() == (
        f"addition==1.2 --hash=sha256:{sha256(addition)}\n"
        f"columns==3.1 --hash=sha256:{sha256(columns)}\n"
        f"dpmepf==0.1.0 --hash=sha256:{sha256(ours)}\n"
    )


def test_what_reads_parquet_files_is_fetched_too(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be fetched, it is too late to find that the private images are in such files."""
    _, *others = write_small_wheels(tmp_path / "wheels")
    (tmp_path / "index").mkdir()
    for wheel in others:
        wheel.rename(tmp_path / "index" / wheel.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    program.fetch_dependencies(tmp_path / "wheels")
    names = sorted(wheel.name.partition("-")[0] for wheel in (tmp_path / "wheels").iterdir())
    assert names == ["addition", "columns", "dpmepf"]


def test_a_wheel_that_is_missing_from_the_folder_is_not_taken_from_anywhere_else(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, addition = write_small_wheels(tmp_path / "wheels")
    (tmp_path / "elsewhere").mkdir()
    addition.rename(tmp_path / "elsewhere" / addition.name)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "elsewhere"))
    with pytest.raises(SystemExit, match=r"^Error: pip failed for the reason above, and no bundle was written$"):
        program.write_requirements(tmp_path)
    assert not (tmp_path / "requirements.txt").exists()


def test_a_wheel_that_nothing_needs_is_refused(program: ModuleType, tmp_path: Path) -> None:
    write_small_wheels(tmp_path / "wheels")
    write_wheel(tmp_path / "wheels", "stowaway", "1.0", files={})
    with pytest.raises(SystemExit, match=r"^Error: stowaway-1.0-py3-none-any.whl was fetched, but nothing needs it"):
        program.write_requirements(tmp_path)


def test_torch_comes_from_the_index_that_was_named_and_from_nowhere_else(
    program: ModuleType, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = write_wheel(tmp_path / "elsewhere", "torch", "4.0", files={})
    monkeypatch.setenv("PIP_FIND_LINKS", str(newer.parent))
    program.fetch_torch(tmp_path / "wheels", ["torch>=2.11", "torchvision>=0.26"], index)
    names = sorted(wheel.name for wheel in (tmp_path / "wheels").iterdir())
    assert names == ["torch-3.0-py3-none-any.whl", "torchvision-1.0-py3-none-any.whl"]


def test_an_index_that_was_named_and_cannot_be_reached_is_an_error(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Error: pip failed"):
        program.fetch_torch(tmp_path / "wheels", ["torch>=2.11"], NOBODY_LISTENS)


def test_where_the_cpu_index_cannot_be_reached_a_sentence_says_what_is_taken_instead(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "CPU_INDEX", NOBODY_LISTENS)
    program.fetch_torch(tmp_path / "wheels", ["torch>=2.11"], None)
    assert "out of reach at http://127.0.0.1:9/simple (INDEX=URL names a mirror)" in capsys.readouterr().err


def test_only_torch_and_torchvision_are_asked_of_the_cpu_index(program: ModuleType) -> None:
    names = [requirement.partition(">")[0] for requirement in program.torch_requirements(ROOT)]
    assert names == ["torch", "torchvision"]


@pytest.fixture
def without_fetching(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program with small wheels in the place of those that it would build and fetch."""
    monkeypatch.setattr(program, "checked_out_commit", lambda: (REVISION, "0"))
    monkeypatch.setattr(program, "export_commit", lambda _revision, source: source.symlink_to(ROOT))
    monkeypatch.setattr(program, "build_wheel", lambda _source, wheels, _seconds: write_small_wheels(wheels))
    monkeypatch.setattr(program, "fetch_torch", lambda *_: None)
    monkeypatch.setattr(program, "fetch_dependencies", lambda _wheels: None)
    return program


def test_a_bundle_has_the_hash_of_every_file_as_sha256sum_reads_it(
    without_fetching: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    assert without_fetching.make_bundle(bundle, None) == sha256(bundle / "SHA256SUMS")
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file()}
    assert {line.removesuffix(": OK") for line in checked} == files - {"SHA256SUMS"}
    assert os.listdir(tmp_path) == ["bundle"]  # noqa: PTH208


def test_the_c_library_a_bundle_needs_is_the_newest_that_a_wheel_needs_at_least(program: ModuleType) -> None:
    wheels = [
        "one-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "two-2-cp311-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "three-3-py3-none-manylinux_2_5_x86_64.whl",
        "four-4-py3-none-any.whl",
    ]
    assert program.oldest_glibc(wheels) == "glibc 2.27"
    assert program.oldest_glibc(wheels[2:]) == "glibc 2.5"
    assert program.oldest_glibc(wheels[3:]) is None


def test_a_bundles_readme_says_what_it_is_of(without_fetching: ModuleType, tmp_path: Path) -> None:
    without_fetching.make_bundle(tmp_path / "bundle", None)
    text = (tmp_path / "bundle" / "README.txt").read_text("utf-8")
    assert text.startswith("dpmepf 0.1.0, ")
    assert REVISION in text
    assert (tmp_path / "bundle" / "MADE_FOR").read_text() in text
    assert " 3 wheels" in text


def test_a_bundle_has_the_documents_that_an_officer_reads_and_that_lead_to_each_other(
    without_fetching: ModuleType, tmp_path: Path
) -> None:
    without_fetching.make_bundle(tmp_path / "bundle", None)
    documents = tmp_path / "bundle" / "documents"
    readme = documents / "README.md"
    linked = {readme.parent / link for link in re.findall(r"\]\(([^):#]+)\)", readme.read_text("utf-8"))}
    assert documents / "docs" / "THREAT_MODEL.md" in linked
    assert documents / "embed" / "PROOF.md" in linked
    assert not {link for link in linked if link.suffix in (".md", ".png") and not link.is_file()}


@pytest.mark.parametrize(
    "step", ["export_commit", "build_wheel", "fetch_torch", "fetch_dependencies", "write_requirements", "file_sha256"]
)
@pytest.mark.parametrize("failure", [SystemExit, KeyboardInterrupt])
def test_a_bundle_that_is_not_whole_never_has_its_name(
    step: str,
    failure: type[BaseException],
    without_fetching: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise failure

    if step == "file_sha256":  # the last step that can fail
        monkeypatch.setattr(without_fetching, "write_requirements", lambda _: {"dpmepf": "0.1.0"})
    monkeypatch.setattr(without_fetching, step, fail)
    with pytest.raises(failure):
        without_fetching.make_bundle(tmp_path / "bundle", None)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(program: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(SystemExit, match=r"^Error: .*bundle exists already: remove it, or name another folder"):
        program.make_bundle(tmp_path / "bundle", None)
    assert not list((tmp_path / "bundle").iterdir())


@pytest.fixture
def checkout(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, with one file, for the program to make a bundle of."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    (tmp_path / "committed.py").write_text("1\n")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "one"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(program, "ROOT", tmp_path)
    return tmp_path


def test_only_what_is_in_the_commit_gets_into_the_wheel(
    program: ModuleType, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (checkout / "private.py").write_text("secret\n")
    revision, seconds = program.checked_out_commit()
    source = tmp_path_factory.mktemp("exported") / "source"
    program.export_commit(revision, source)
    assert [file.name for file in source.iterdir()] == ["committed.py"]
    assert int(seconds) > 0


def test_changes_that_are_in_no_commit_are_refused(program: ModuleType, checkout: Path) -> None:
    (checkout / "committed.py").write_text("2\n")
    with pytest.raises(SystemExit, match=r"^Error: a bundle is of one commit, and there are changes here"):
        program.checked_out_commit()


def test_making_a_bundle_needs_nothing_but_python_itself() -> None:
    for file in (ROOT / "airgap").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names, file.name
