"""What a reviewer of the trusted core may rely on without reading it: its imports, and that its checks always run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dpmepf.artifacts

FOLDER = Path(dpmepf.artifacts.__file__).parent
MODULES = sorted(path for path in FOLDER.glob("*.py") if path.read_text().startswith('"""Trusted core'))
ALLOWED = {
    # the standard library
    *[
        "__future__",
        "collections.abc",
        "contextlib",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "errno",
        "fractions",
        "hashlib",
    ],
    *[
        "importlib.metadata",
        "io",
        "json",
        "math",
        "os",
        "pathlib",
        "platform",
        "re",
        "secrets",
        "sqlite3",
        "statistics",
        "struct",
        "typing",
    ],
    *["unicodedata", "uuid", "zlib"],
    # others'
    *["h5py", "mpmath", "numpy", "numpy.typing", "platformdirs"],
    # ours
    *["dpmepf.shared", "dpmepf.shared.errors", "dpmepf.shared.class_names", "dpmepf.shared.feature_map_description"],
}


def test_the_trusted_core_is_all_but_the_audits_presentation() -> None:
    untrusted = {path.name for path in FOLDER.glob("*.py")} - {path.name for path in MODULES}
    presentation = {
        "accountants.py",
        "audit.py",
        "audit_command.py",
        "merge_command.py",
        "register_command.py",
        "signature.py",
        "tables.py",
    }
    assert untrusted == {"__init__.py"} | presentation


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_trusted_module_imports_only_what_is_listed_and_never_asserts(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), "python -O removes asserts"
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    trusted = {f"dpmepf.artifacts.{module.stem}" for module in MODULES} | {"dpmepf.artifacts"}
    assert imported <= ALLOWED | trusted


def test_importing_the_package_and_its_accounting_loads_no_console_and_no_torch() -> None:
    program = (
        "import sys, dpmepf.artifacts, dpmepf.artifacts.accounting, dpmepf.artifacts.ledger; "
        "print([name for name in ('click', 'rich', 'torch', 'opacus') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_audit_and_the_trusted_core_load_no_torch_before_an_accountant_of_opacus_is_asked() -> None:
    embed = FOLDER.parent / "embed"
    core = [path for path in embed.glob("*.py") if path.read_text().startswith('"""Trusted core')]
    modules = [f"dpmepf.{path.parent.name}.{path.stem}" for path in [*FOLDER.glob("*.py"), *core]]
    assert "dpmepf.artifacts.audit_command" in modules and "dpmepf.embed.release" in modules
    program = (
        f"import sys, {', '.join(modules)}; "
        "print([name for name in ('torch', 'torchvision', 'opacus', 'dp_accounting') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
