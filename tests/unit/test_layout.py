"""The house: which package may import which, and what the trusted core may not touch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "shared": {"shared"},
    "artifacts": {"shared", "artifacts"},
    "embed": {"shared", "artifacts", "embed"},
    "synthesize": {"shared", "artifacts", "synthesize"},
}
TRUSTED_CORE = [
    "artifacts/accounting.py",
    "artifacts/accounts.py",
    "artifacts/artifact.py",
    "artifacts/hdf5_file.py",
    "artifacts/hdf5_headers.py",
    "artifacts/hdf5_inspection.py",
    "artifacts/ledger.py",
    "artifacts/merged_ledger.py",
    "artifacts/merging.py",
    "artifacts/register.py",
    "artifacts/relation.py",
    "artifacts/sensitivity.py",
    "artifacts/strict_json.py",
    "embed/bounding.py",
    "embed/noise.py",
    "embed/release.py",
    "embed/summing.py",
]
UNTRUSTED_LIBRARIES = {"click", "rich", "requests", "urllib", "socket", "http", "matplotlib", "torchvision"}


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way_from_shared_over_artifacts_to_both_sides(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        packages = {module.split(".")[1] for module in imported_modules(file) if module.startswith("dpmepf.")}
        assert packages <= MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {packages - MAY_IMPORT[package]}"


@pytest.mark.parametrize("name", TRUSTED_CORE)
def test_trusted_core_imports_no_console_and_no_network(name: str) -> None:
    libraries = {module.split(".")[0] for module in imported_modules(ROOT / name)}
    assert not libraries & UNTRUSTED_LIBRARIES


@pytest.mark.parametrize("name", TRUSTED_CORE)
def test_checks_in_the_trusted_core_raise_and_do_not_assert(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("name", TRUSTED_CORE)
def test_trusted_core_has_no_seed_and_no_injectable_generator(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
            assert not arguments & {"seed", "generator", "rng", "random_state"}, node.name
        if isinstance(node, ast.Attribute | ast.Name):
            name_used = node.attr if isinstance(node, ast.Attribute) else node.id
            assert name_used not in {"random", "manual_seed", "default_rng", "RandomState"}
