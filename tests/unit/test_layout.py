"""The house: which package may import which, and what the trusted core may not touch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "shared": {"shared"},
    "artifacts": {"shared", "artifacts"},
    "embed": {"shared", "artifacts", "embed"},
    "synthesize": {"shared", "artifacts", "synthesize"},
}
TRUSTED_CORE = sorted(
    str(file.relative_to(ROOT))
    for package in MAY_IMPORT
    for file in (ROOT / package).rglob("*.py")
    if file.read_text("utf-8").startswith('"""Trusted core')
)
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


def test_the_trusted_core_is_where_sums_are_bounded_noised_accounted_for_and_written() -> None:
    assert {Path(name).parts[0] for name in TRUSTED_CORE} == {"artifacts", "embed"}
    found = {Path(name).stem for name in TRUSTED_CORE}
    assert {"bounding", "noise", "release", "summing"} <= found
    assert {
        "accounting",
        "accounts",
        "artifact",
        "atomic_file",
        "claims",
        "ledger",
        "merged_ledger",
        "merging",
    } <= found
    assert {"hdf5_file", "hdf5_headers", "hdf5_inspection", "register", "sensitivity", "strict_json"} <= found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_each_package_says_what_its_modules_are(package: str) -> None:
    index = (ROOT / package / "__init__.py").read_text("utf-8")
    modules = {file.stem for file in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    assert {module for module in modules if not re.search(rf"^ {{4}}(\w+, )*{module}\b", index, re.MULTILINE)} == set()


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
