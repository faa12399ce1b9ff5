"""install.sh of a bundle: what was changed on its way is not installed, and one sentence says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_examples import REVISION, ROOT, load_make_bundle, write_small_wheels, write_wheel


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("made") / "bundle"
    write_small_wheels(bundle / "wheels")
    load_make_bundle().complete(bundle, ROOT, REVISION)
    return bundle


@pytest.fixture
def bundle(untouched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untouched, tmp_path / "USB stick" / "bundle"))


def write_sums_anew(bundle: Path) -> None:
    """What somebody who changes the bundle and hopes that nobody compares the one number would do."""
    files = sorted(str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file())
    files.remove("SHA256SUMS")
    sums = subprocess.check_output(["sha256sum", *files], cwd=bundle)
    (bundle / "SHA256SUMS").write_bytes(sums)


def install(bundle: Path, *arguments: str, python: str = sys.executable) -> str:
    """Run install.sh, which has to refuse and leave nothing behind, and return what it said."""
    before = sorted(bundle.parent.parent.rglob("*"))
    run = subprocess.run(
        ["sh", bundle / "install.sh", *arguments],
        cwd=bundle.parent.parent,
        env=os.environ | {"PYTHON": python},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert sorted(bundle.parent.parent.rglob("*")) == before
    return run.stderr


def assert_one_sentence(said: str, expected: str) -> None:
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert expected in said


@pytest.mark.parametrize("name", ["wheels/addition-1.2-py3-none-any.whl", "requirements.txt", "made_for.py"])
def test_a_changed_file_is_refused_by_name(name: str, bundle: Path) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b" ")
    assert_one_sentence(install(bundle, "new"), f"Error: {name} is missing or was changed on its way: ")


@pytest.mark.parametrize("name", ["wheels/addition-1.2-py3-none-any.whl", "README.txt", "SHA256SUMS"])
def test_a_missing_file_is_refused_by_name(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    assert_one_sentence(install(bundle, "new"), f"Error: {name} is missing or was changed on its way: ")


@pytest.mark.parametrize("name", ["wheels/addition-9-py3-none-any.whl", "wheels/SHA256SUMS", ".hidden"])
def test_a_file_too_many_is_refused_by_name(name: str, bundle: Path) -> None:
    (bundle / name).touch()
    assert_one_sentence(install(bundle, "new"), f"Error: {name} is not in SHA256SUMS: ")


def test_a_link_too_many_is_refused_by_name(bundle: Path) -> None:
    (bundle / "wheels" / "link.whl").symlink_to("/etc/passwd")
    assert_one_sentence(install(bundle, "new"), "Error: wheels/link.whl is not in SHA256SUMS: ")


def test_a_line_of_the_sums_that_sha256sum_skips_is_refused(bundle: Path) -> None:
    sums = bundle / "SHA256SUMS"
    first, *rest = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(["x" + first[1:], *rest]))
    assert_one_sentence(install(bundle, "new"), f"Error: {first[66:].strip()} is not in SHA256SUMS: ")


def test_another_python_than_the_wheels_are_for_is_refused(bundle: Path) -> None:
    (bundle / "MADE_FOR").write_text("CPython 3.99 on Linux x86_64 (cpython-399-x86_64-linux-gnu)\n")
    write_sums_anew(bundle)
    said = install(bundle, "new")
    assert_one_sentence(
        said, "Error: this bundle is for CPython 3.99 on Linux x86_64 (cpython-399-x86_64-linux-gnu), but"
    )
    assert f"{sys.executable} is CPython 3." in said


def test_an_older_c_library_than_the_wheels_are_for_is_refused(bundle: Path) -> None:
    with (bundle / "MADE_FOR").open("a") as file:
        file.write("glibc 2.999\n")
    write_sums_anew(bundle)
    assert_one_sentence(install(bundle, "new"), "Error: this bundle is for glibc 2.999 or later, but here is 2.")


def test_a_python_that_is_not_there_is_named(bundle: Path) -> None:
    said = install(bundle, "new", python="/no/such/python")
    assert_one_sentence(said, "Error: /no/such/python does not run here, and this bundle is for CPython 3.")


@pytest.mark.parametrize("arguments", [[], ["one", "two"]])
def test_the_folder_to_install_into_has_to_be_named(arguments: list[str], bundle: Path) -> None:
    assert_one_sentence(install(bundle, *arguments), "Error: name the folder to install into")


def test_a_folder_that_is_there_is_left_alone(bundle: Path) -> None:
    assert_one_sentence(install(bundle, "USB stick"), "USB stick exists already: name a new folder")


@pytest.mark.slow  # as it makes an environment
def test_pip_refuses_a_wheel_in_the_place_of_another_though_the_sums_were_written_anew(bundle: Path) -> None:
    write_wheel(bundle / "wheels", "addition", "1.2", files={"addition.py": "import os\n"})
    write_sums_anew(bundle)
    said = install(bundle, "new")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said
    assert said.endswith("/new was removed again\n")


@pytest.mark.slow
def test_an_encoder_that_is_not_its_model_cards_is_refused_after_everything_was_installed(bundle: Path) -> None:
    assert "Error: the built-in encoder is not the one its model card names" in install(bundle, "new")
