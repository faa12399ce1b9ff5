"""Every privacy bug in `mutants.py` is noticed by a test that names it as a killer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

import dpmepf.shared

ROOT = Path(__file__).resolve().parents[2]
MUTATED = ("artifacts", "embed", "shared")
WEIGHTS = "weights"
UNCHANGED = Path(dpmepf.shared.__file__).parent / WEIGHTS
TESTS_FAILED = 1  # pytest's exit status; 2 to 5 say that tests could not be run, which kills nothing
SECONDS = 300


def core_copied_to(folder: Path) -> Path:
    """A folder for PYTHONPATH, in which `dpmepf` is a copy of the packages that mutants change."""
    package = folder / "dpmepf"
    for name in MUTATED:
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__", WEIGHTS))
    (package / "shared" / WEIGHTS).symlink_to(UNCHANGED, target_is_directory=True)
    return folder


def run_tests(tests: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `tests` on the core in `folder`; its files are on no other process's path and leave no bytecode."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder),
    }
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-m", "not slow"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(ROOT / "tests" / test) for test in tests)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def killed(mutant: Mutant, folder: Path) -> subprocess.CompletedProcess[str]:
    file = core_copied_to(folder) / "dpmepf" / mutant.file
    assert file.resolve().is_relative_to(folder.resolve()), "a mutant must not be written into the package itself"
    file.write_text(file.read_text("utf-8").replace(mutant.old, mutant.new), "utf-8")
    finished = run_tests(mutant.killers, folder)
    shutil.rmtree(folder)
    return finished


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mutant], subprocess.CompletedProcess[str]]:
    """What became of a mutant; as many at a time as there are cores, begun when the first is asked for."""
    started: dict[int, Future[subprocess.CompletedProcess[str]]] = {}
    pool = ThreadPoolExecutor(os.cpu_count())

    def of(mutant: Mutant) -> subprocess.CompletedProcess[str]:
        position = MUTANTS.index(mutant)
        for index in range(position, min(position + (os.cpu_count() or 1), len(MUTANTS))):
            if index not in started:
                started[index] = pool.submit(killed, MUTANTS[index], tmp_path_factory.mktemp("mutant"))
        return started[position].result()

    return of


@pytest.mark.slow
def test_the_killers_pass_on_the_core_as_it_is(tmp_path: Path) -> None:
    killers = sorted({killer for mutant in MUTANTS for killer in mutant.killers})
    finished = run_tests(killers, core_copied_to(tmp_path))
    assert finished.returncode == 0, finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.why)
def test_a_mutant_is_killed(mutant: Mutant, verdict: Callable[[Mutant], subprocess.CompletedProcess[str]]) -> None:
    finished = verdict(mutant)
    assert finished.returncode == TESTS_FAILED, f"{mutant.why}: {mutant.killers} noticed nothing\n{finished.stdout}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.why)
def test_a_mutant_fits_the_core_as_it_is_now(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text("utf-8")
    assert source.count(mutant.old) == 1, f"adapt `old` of this mutant to {mutant.file}"
    assert mutant.new != mutant.old
    for killer in mutant.killers:
        file, _, name = killer.partition("[")[0].partition("::")
        assert (f"def {name}(" if name else "def test_") in (ROOT / "tests" / file).read_text("utf-8")


def test_every_module_of_the_trusted_core_that_decides_something_has_a_mutant() -> None:
    """`errors` holds types and `relation` an enumeration; everything else whose first line says so is mutated."""
    core = {
        str(path.relative_to(ROOT))
        for folder in MUTATED
        for path in (ROOT / folder).glob("*.py")
        if path.read_text("utf-8").startswith('"""Trusted core')
    }
    assert core - {mutant.file for mutant in MUTANTS} == {"artifacts/errors.py", "artifacts/relation.py"}
    assert len(MUTANTS) >= 30
