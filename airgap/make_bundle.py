"""Make the folder with which a machine without a network installs dpmepf. Run by `make bundle`.

The bundle is of one commit and for machines like this one: the same version of Python, operating system and processor.
It holds the whole package with all that it requires, and what reads parquet files. What only the modeller needs of that
is small beside torch, and `pip check` would miss it. Making a bundle takes Python, pip and git, and no other package.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import os
import re
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = "[parquet]"  # of setup.cfg: where nothing can be fetched, it is too late to find that it is wanted
DOCUMENTS = ("README.md", "CHANGELOG.md", "docs/*", "embed/PROOF.md", "artifacts/PROOF.md", "shared/weights/*.md")
WHEELS_ONLY = ("--only-binary", ":all:")


def make_bundle(output: Path, index: str | None) -> str:
    """Make a bundle of the commit that is checked out, and give it its name when it is whole.

    Args:
        output: the folder to make.
        index: where torch and torchvision come from; by default PyTorch's CPU index, or, if that is out of reach,
            wherever pip finds them.
    Returns:
        The SHA-256 of its SHA256SUMS, which stands for every file in it.
    Raises:
        SystemExit: with one sentence; nothing is left behind.
    """
    if os.path.lexists(output):
        sys.exit(f"Error: {output} exists already: remove it, or name another folder with --output")
    if not output.parent.is_dir():
        sys.exit(f"Error: the folder {output.parent} does not exist: create it, or choose another --output")
    revision, seconds = checked_out_commit()
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as scratch:
        source, bundle = Path(scratch) / "source", Path(scratch) / "bundle"
        wheels = bundle / "wheels"
        wheels.mkdir(parents=True)
        say(f"1/4 Building dpmepf from commit {revision[:12]}")
        export_commit(revision, source)
        build_wheel(source, wheels, seconds)
        say("2/4 Fetching torch and torchvision")
        fetch_torch(wheels, torch_requirements(source), index)
        say("3/4 Fetching everything else that is needed")
        fetch_dependencies(wheels)
        say("4/4 Checking that the wheels are complete, and writing their hashes")
        complete(bundle, source, revision)
        try:
            bundle.rename(output)
        except OSError as error:
            sys.exit(f"Error: the bundle could not be named {output} ({error.strerror}), and was thrown away")
    return file_sha256(output / "SHA256SUMS")


def checked_out_commit() -> tuple[str, str]:
    """The commit that is checked out, and its time in seconds since 1970."""
    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        revision, seconds = git("log", "-1", "--format=%H %ct").split()
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"Error: a bundle is of one commit, and git finds none in {ROOT}: make it in a clone")
    if changes:
        sys.exit("Error: a bundle is of one commit, and there are changes here that are in none: commit or stash them")
    return revision, seconds


def export_commit(revision: str, source: Path) -> None:
    """Write out the files of a commit: whatever else lies in the working tree must not get into the wheel."""
    archive = source.with_suffix(".zip")
    git("archive", "--format=zip", f"--output={archive}", revision)
    shutil.unpack_archive(archive, source)


def build_wheel(source: Path, wheels: Path, seconds: str) -> None:
    """Build our own wheel with the commit's time on its files, so that the same commit gives the same bytes."""
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source, SOURCE_DATE_EPOCH=seconds)


def torch_requirements(source: Path) -> list[str]:
    """What setup.cfg asks of torch and torchvision, the two packages with a smaller build for the CPU."""
    setup = configparser.ConfigParser()
    setup.read(source / "setup.cfg", encoding="utf-8")
    return [line for line in setup["options"]["install_requires"].split() if re.match(r"torch(vision)?\b", line)]


def fetch_torch(wheels: Path, requirements: list[str], index: str | None) -> None:
    """Fetch torch and torchvision from `index` and from nowhere else, whatever pip's settings add to it."""
    only_index = {"PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": None, "PIP_FIND_LINKS": None}
    source = ("--index-url", index or CPU_INDEX, "--retries", 1, "--timeout", 30)
    try:
        pip("download", *WHEELS_ONLY, "--no-deps", "--dest", wheels, *source, *requirements, **only_index)
    except SystemExit:
        if index:
            raise
        say(
            f"PyTorch's CPU builds are out of reach at {CPU_INDEX} (INDEX=URL names a mirror): taking what pip finds, "
            "which on Linux may be the CUDA build, of several GB; it runs without a GPU too"
        )


def fetch_dependencies(wheels: Path) -> None:
    """Fetch what the wheels in a folder need and it does not hold yet, with pip as it is set up here."""
    fetched = [f"{wheel}{EXTRAS if wheel.name.startswith('dpmepf-') else ''}" for wheel in sorted(wheels.glob("*.whl"))]
    pip("download", *WHEELS_ONLY, "--dest", wheels, *fetched)


def complete(bundle: Path, source: Path, revision: str) -> None:
    """Add to a folder with `wheels/` everything else that makes it a bundle."""
    versions = write_requirements(bundle)
    for script in ("install.sh", "made_for.py"):
        shutil.copyfile(source / "airgap" / script, bundle / script)
    for document in (found for pattern in DOCUMENTS for found in source.glob(pattern)):
        copy = bundle / "documents" / document.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(document, copy)
    made_for = subprocess.check_output([sys.executable, bundle / "made_for.py"], text=True).strip()
    glibc = oldest_glibc(file.name for file in (bundle / "wheels").iterdir())
    (bundle / "MADE_FOR").write_text(f"{made_for}\n{glibc}\n" if glibc else f"{made_for}\n")
    facts = {"version": versions["dpmepf"], "torch": versions.get("torch"), "count": len(versions)}
    readme = string.Template((source / "airgap" / "README.txt").read_text("utf-8"))
    platform = ", ".join(filter(None, [made_for, glibc and f"{glibc} or later"]))
    (bundle / "README.txt").write_text(readme.substitute(facts, revision=revision, made_for=platform), "utf-8")
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    sums = "".join(f"{file_sha256(file)}  {file.relative_to(bundle).as_posix()}\n" for file in files)
    (bundle / "SHA256SUMS").write_text(sums)
    size = sum(file.stat().st_size for file in files)
    say(f"{len(versions)} wheels, {size / 1e6:,.0f} MB, for {platform}")


def write_requirements(bundle: Path) -> dict[str, str]:
    """Write requirements.txt with the version and hash of each wheel, as pip resolves them from this folder alone.

    Returns:
        The version of each package.
    """
    wheels = bundle / "wheels"
    alone = ("--isolated", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-index", "--report", "-")
    report = pip(*alone, *WHEELS_ONLY, "--find-links", wheels, f"dpmepf{EXTRAS}", PIP_CONFIG_FILE=os.devnull)
    versions, requirements, needed = {}, [], set()
    for package in json.loads(report)["install"]:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        wheel = wheels / unquote(package["download_info"]["url"].rpartition("/")[2])
        versions[name] = version
        requirements.append(f"{name}=={version} --hash=sha256:{file_sha256(wheel)}\n")
        needed.add(wheel)
    if unneeded := set(wheels.iterdir()) - needed:
        sys.exit(f"Error: {min(unneeded).name} was fetched, but nothing needs it, and no bundle was written")
    (bundle / "requirements.txt").write_text("".join(sorted(requirements, key=str.lower)))
    return versions


def oldest_glibc(wheels: Iterable[str]) -> str | None:
    """The oldest version of glibc that all of these wheels run with; None if none says so.

    A wheel with several such tags (PEP 600) runs with the oldest of them.
    """
    tagged = [re.findall(r"manylinux_2_(\d+)_", name) for name in wheels]
    minors = [min(map(int, numbers)) for numbers in tagged if numbers]
    return f"glibc 2.{max(minors)}" if minors else None


def pip(*arguments: object, **settings: str | None) -> str:
    """Run pip with these environment variables set (None: unset), and return its report if it makes one.

    Raises:
        SystemExit: it failed; it has said why on stderr.
    """
    environment = {name: value for name, value in {**os.environ, **settings}.items() if value is not None}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    stdout = subprocess.PIPE if "--report" in arguments else 2  # our own stdout is for the one number
    run = subprocess.run(command, stdout=stdout, env=environment, text=True)
    if run.returncode:
        sys.exit("Error: pip failed for the reason above, and no bundle was written")
    return run.stdout or ""


def git(*arguments: str) -> str:
    """What git says about this checkout."""
    return subprocess.check_output(["git", "-C", ROOT, *arguments], text=True).strip()


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("bundle"), help="the folder to make (default: bundle)")
    parser.add_argument("--index", help=f"package index that torch and torchvision come from (default: {CPU_INDEX})")
    arguments = parser.parse_args()
    digest = make_bundle(arguments.output, arguments.index)
    say("Tell the custodian this number in another way than the bundle travels (telephone, signed mail, paper):")
    sys.stdout.write(f"{digest}  {arguments.output / 'SHA256SUMS'}\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped: no bundle was written")
