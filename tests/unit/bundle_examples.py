"""A bundle small enough for quick tests: the real scripts around three wheels of a few lines."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
REVISION = "0123456789abcdef0123456789abcdef01234567"
DPMEPF = {
    "dpmepf/shared/encoders.py": "import pathlib\n"
    "BUILTIN_WEIGHTS = pathlib.Path(__file__).with_name('builtin.safetensors')\n",
    "dpmepf/shared/builtin.safetensors": "these are not the weights",
    "dpmepf/shared/MODEL_CARD.md": f"SHA-256 {'0' * 64}\n",
    "dpmepf/embed/command.py": "def main():\n    import addition\n",
    "dpmepf-0.1.0.dist-info/entry_points.txt": "[console_scripts]\ndpmepf-embed = dpmepf.embed.command:main\n",
}
REQUIREMENTS = """\
Requires-Dist: addition>=1
Provides-Extra: parquet
Requires-Dist: columns>=3; extra == "parquet"
"""


def load_make_bundle() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("make_bundle", ROOT / "airgap" / "make_bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheel(folder: Path, name: str, version: str, *, metadata: str = "", files: dict[str, str]) -> Path:
    """A wheel of pure Python that holds `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    information = f"{name}-{version}.dist-info"
    content = files | {
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{information}/RECORD"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**content, f"{information}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def write_small_wheels(wheels: Path) -> tuple[Path, Path, Path]:
    """Something called dpmepf with the parts that install.sh looks at, what it requires, and an extra."""
    ours = write_wheel(wheels, "dpmepf", "0.1.0", metadata=REQUIREMENTS, files=DPMEPF)
    columns = write_wheel(wheels, "columns", "3.1", files={"columns.py": ""})
    addition = {"addition.py": "def add(a, b):\n    return a + b\n"}
    return ours, columns, write_wheel(wheels, "addition", "1.2", files=addition)
