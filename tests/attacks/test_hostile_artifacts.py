"""Hostile artifact files: each malformation has its own error, raised before anything it could harm.

Each is read in a process of its own by what users run, `dpmepf-synth`'s reading and `dpmepf-audit`, for at most five
seconds, with at most a gibibyte of memory, and with an eye on the files outside that it points to (limited_process.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from artifact_examples import example_artifact
from artifact_users import read_and_audit
from limited_process import Ending, call_limited
from malformed_bytes import BYTES, FORMAT
from malformed_content import CONTENT
from malformed_structure import CLASSES, DIMENSION, OUTSIDE, STRUCTURE

from dpmepf.artifacts import errors
from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.shared.errors import DpmepfError


def in_hdf5(malform: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+", libver=FORMAT) as file:
            malform(file)

    change.__name__ = malform.__name__
    return change


MALFORMATIONS = [(in_hdf5(malform), error, named) for malform, error, named in STRUCTURE + CONTENT] + BYTES


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "a.h5"
    write_artifact(path, example_artifact(classes=CLASSES, feature_dimension=DIMENSION))
    return path.read_bytes()


@pytest.fixture
def path(good: bytes, tmp_path: Path) -> Path:
    """An artifact, beside a folder with another that nobody may open."""
    (tmp_path / OUTSIDE).mkdir()
    (tmp_path / OUTSIDE / "secret.h5").write_bytes(good)
    (tmp_path / "a.h5").write_bytes(good)
    return tmp_path / "a.h5"


def test_a_good_file_passes_under_the_same_limits(path: Path) -> None:
    outcome = call_limited(read_and_audit, path, forbidden=path.parent / OUTSIDE)
    assert outcome.ending is Ending.RETURNED, outcome
    assert "Every claim holds" in outcome.message


@pytest.mark.parametrize(
    ("malform", "error", "named"), MALFORMATIONS, ids=[malform.__name__ for malform, _, _ in MALFORMATIONS]
)
def test_a_malformation_has_its_own_error_that_names_the_object(
    path: Path, malform: Callable[[Path], None], error: type[DpmepfError], named: str
) -> None:
    malform(path)
    outcome = call_limited(read_and_audit, path, forbidden=path.parent / OUTSIDE)
    assert (outcome.ending, outcome.error) == (Ending.REFUSED, error.__name__), outcome
    assert re.search(named, outcome.message), outcome
    assert outcome.message.isprintable()


def test_every_error_type_of_an_artifact_has_a_malformation() -> None:
    types = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ArtifactError)
    }
    elsewhere = {errors.ArtifactError, errors.ArtifactWriteError, errors.InconsistentArtifactError}
    assert types - elsewhere <= {error for _, error, _ in MALFORMATIONS}
