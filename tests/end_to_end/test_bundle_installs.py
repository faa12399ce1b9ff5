"""The custodian's machine: a bundle is carried in, installed where there is no network, and used for a release."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundle_examples import ROOT, load_make_bundle
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
NO_ROUTE = ["unshare", "--user", "--map-root-user", "--net"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHON": sys.executable}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not pytest's own, which keeps the last three: with CUDA, this one comes to 9 GB."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    if subprocess.check_output(["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"]):
        pytest.skip("a bundle is of one commit, and there are changes here that are in none")
    command = [sys.executable, ROOT / "airgap" / "make_bundle.py", "--output", folder / "bundle"]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return folder / "bundle"


@pytest.fixture(scope="module")
def offline() -> list[str]:
    """What to put before a command so that it runs without a network; nothing where the machine does not allow it."""
    allowed = subprocess.run([*NO_ROUTE, "true"], capture_output=True).returncode == 0
    return NO_ROUTE if allowed else []


@pytest.fixture(scope="module")
def commands(bundle: Path, folder: Path, offline: list[str]) -> Path:
    """The folder with the commands of an installation from the bundle."""
    subprocess.run([*offline, "sh", bundle / "install.sh", folder / "installed"], check=True, env=ENVIRONMENT)
    return folder / "installed" / "bin"


def test_a_release_and_its_audit_work_where_the_bundle_was_installed(
    commands: Path, offline: list[str], tmp_path: Path
) -> None:
    for index in range(40):
        image = tmp_path / "private" / f"class {index % 2}" / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
    artifact = tmp_path / "artifact.h5"
    release = [commands / "dpmepf-embed", "--data", tmp_path / "private", "--eps", "2", "--output", artifact]
    subprocess.run([*offline, *release], check=True, env=ENVIRONMENT, cwd=tmp_path)
    subprocess.run([*offline, commands / "dpmepf-audit", artifact], check=True, env=ENVIRONMENT, cwd=tmp_path)


def test_parquet_files_can_be_read_where_the_bundle_was_installed(commands: Path) -> None:
    subprocess.run([commands / "python", "-c", "import pyarrow.parquet"], check=True, env=ENVIRONMENT, cwd="/")


def test_what_was_installed_is_the_bundles_wheel_and_not_this_checkout(commands: Path) -> None:
    where = "from dpmepf.shared import encoders; print(encoders.__file__)"
    found = subprocess.check_output([commands / "python", "-c", where], text=True, env=ENVIRONMENT, cwd="/")
    assert found.startswith(str(commands.parent))


def test_where_it_was_installed_there_was_no_way_out(offline: list[str], commands: Path) -> None:
    if not offline:
        pytest.skip("this machine allows no network namespaces: installed with pip --no-index alone")
    connect = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    run = subprocess.run([*offline, commands / "python", "-c", connect], capture_output=True, text=True)
    assert "Network is unreachable" in run.stderr


def test_the_same_commit_gives_the_same_wheel(bundle: Path, tmp_path: Path) -> None:
    program = load_make_bundle()
    revision, seconds = program.checked_out_commit()
    program.export_commit(revision, tmp_path / "source")
    program.build_wheel(tmp_path / "source", tmp_path, seconds)
    (again,) = tmp_path.glob("dpmepf-*.whl")
    assert again.read_bytes() == (bundle / "wheels" / again.name).read_bytes()
