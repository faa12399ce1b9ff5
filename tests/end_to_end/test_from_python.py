"""The whole way from Python, as README shows it; and a release that is asked for as no command would."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import runpy
import subprocess
import sys
import traceback
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from PIL import Image, ImageFile

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.register import Register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed import request as request_module
from dpmepf.embed import run
from dpmepf.embed.outcome import StoppedReleaseError
from dpmepf.embed.request import ReleaseRequest
from dpmepf.embed.run import ReleaseCallbacks, make_release
from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.synthesize import classifiers, labelling, training
from dpmepf.synthesize.settings import PRESETS

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """private/ and test/, of two classes; and a training of a few images."""
    random = np.random.default_rng(0)
    for folder, name, number in ((f, n, i) for f in ("private", "test") for n in ("cat", "dog") for i in range(6)):
        path = tmp_path / folder / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labelling, "IMAGES", 100)
    monkeypatch.setattr(labelling, "IMAGES_PER_STEP", 40)
    monkeypatch.setattr(training, "DENOISING_IMAGES", 40)
    monkeypatch.setattr(training, "RECALIBRATION_IMAGES", 8)
    monkeypatch.setitem(PRESETS, "quick", dataclasses.replace(PRESETS["quick"], steps=2, batch_size=4))
    for name, recipe in classifiers.RECIPES.items():
        monkeypatch.setitem(classifiers.RECIPES, name, dataclasses.replace(recipe, steps=2))


def test_what_the_readme_shows_runs_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (shown,) = (block for block in blocks if "make_release" in block)
    assert "epsilon=2," in shown  # whose noise may leave no image of a dozen
    (tmp_path / "script.py").write_text(shown.replace("epsilon=2,", "epsilon=1000,"))
    found = runpy.run_path("script.py", run_name="__main__")
    assert isinstance(found["artifact"], Artifact)
    assert (tmp_path / "python" / "report.html").is_file()
    assert capfd.readouterr() == ("", "")


def test_a_release_tells_its_caller_what_the_command_shows(tmp_path: Path) -> None:
    told: list[str] = []
    released: list[tuple[Artifact, Register | None]] = []
    request = ReleaseRequest(data=Path("private"), epsilon=20, dataset_name="pets", budget_epsilon=20, workers=0)
    made = make_release(
        dataclasses.replace(request, register=tmp_path / "book.sqlite"),
        callbacks=ReleaseCallbacks(
            warn=told.append, on_release=lambda artifact, register: released.append((artifact, register))
        ),
    )
    assert made is not None
    ((artifact, register),) = released
    assert artifact is made and register is not None and register.path == tmp_path / "book.sqlite"
    assert read_artifact(Path("artifact.h5")).ledger == made.ledger
    assert len(register.read().accounts["pets"].releases) == 1
    assert "epsilon" in told[0] and "20" in told[0]
    with pytest.raises(DpmepfError, match="exists"):
        make_release(request)


def test_an_encrypted_key_without_a_passphrase_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")
    )
    (tmp_path / "key.pem").write_bytes(key)
    request = ReleaseRequest(data=Path("private"), epsilon=2, sign_key=tmp_path / "key.pem", workers=0)
    with pytest.raises(DpmepfError, match="passphrase"):
        make_release(request)
    assert not Path("artifact.h5").exists()
    made = make_release(request, callbacks=ReleaseCallbacks(ask_passphrase=lambda: "open sesame"))
    assert made is not None and Path("artifact.h5.sig").is_file()


UNGUARDED = """
import multiprocessing, sys
from pathlib import Path
from dpmepf.embed.request import ReleaseRequest
from dpmepf.embed.run import make_release
multiprocessing.set_start_method("spawn", force=True)
budget = {"dataset_name": "pets", "register": sys.argv[1], "budget_epsilon": 50}
make_release(ReleaseRequest(data="private", epsilon=2, force=True, workers=0, **budget))
make_release(ReleaseRequest(data="private", epsilon=2, force=True, workers=1, **budget))
"""


def test_a_program_that_its_own_workers_import_releases_once_a_call(tmp_path: Path) -> None:
    """Planted: no guard against being imported. The first call needs no worker; those of the second would make it."""
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "script.py", tmp_path / "book.sqlite"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    assert 'call make_release below if __name__ == "__main__"' in done.stderr
    assert len(Register(tmp_path / "book.sqlite").read().accounts["pets"].releases) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"TORCHELASTIC_RUN_ID": "a", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2"},  # another launcher
        {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "2"},
    ],
    ids=["torchrun", "another launcher", "restarts"],
)
def test_processes_of_a_launcher_do_not_each_make_a_release(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="release of its own"):
        make_release(ReleaseRequest(data=Path("private"), epsilon=2, workers=0))
    assert not Path("artifact.h5").exists()


def test_half_an_image_is_not_taken_for_a_whole_because_the_program_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        make_release(ReleaseRequest(data=Path("private"), epsilon=2, workers=0))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/x/patient-4711"), ValueError("4711")])
def test_an_error_that_nobody_foresaw_names_nothing_private(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("DPMEPF_DEBUG", raising=False)
    monkeypatch.setattr(request_module, "open_images", fail)
    with pytest.raises(DpmepfError) as found:
        make_release(ReleaseRequest(data=Path("private"), epsilon=2, workers=0))
    assert "4711" not in "".join(traceback.format_exception(found.value))
    assert ("permission was denied" if isinstance(error, OSError) else " at request.py:") in str(found.value)
    monkeypatch.setenv("DPMEPF_DEBUG", "1")
    with pytest.raises(type(error), match="4711"):
        make_release(ReleaseRequest(data=Path("private"), epsilon=2, workers=0))


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_what_became_of_the_release_is_in_the_exception(
    writes: bool, debug: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the program has gone to another folder meanwhile."""

    def fail(*_: object, **__: object) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        raise ValueError("patient-4711")

    monkeypatch.setenv("DPMEPF_DEBUG", "1" * debug)
    budget = {"dataset_name": "pets", "register": Path("book.sqlite"), "budget_epsilon": 3}
    request = ReleaseRequest(data=Path("private"), epsilon=2, workers=0, **budget)  # type: ignore[arg-type]
    if not writes:
        monkeypatch.setattr(run, "write_artifact", fail)
    with pytest.raises(ValueError if debug else StoppedReleaseError) as found:
        make_release(request, callbacks=ReleaseCallbacks(on_release=fail))
    told = "".join(traceback.format_exception(found.value))
    became = "is complete: the release was made, and counts" if writes else "and stays charged, although artifact.h5"
    assert became in told
    assert ("4711" in told) == debug
    assert capfd.readouterr() == ("", "")


def test_a_program_that_ends_itself_is_told_what_became_of_the_release() -> None:
    def end(*_: object) -> None:
        raise SystemExit(143)

    with pytest.raises(SystemExit) as found:
        make_release(
            ReleaseRequest(data=Path("private"), epsilon=2, workers=0), callbacks=ReleaseCallbacks(on_release=end)
        )
    assert "artifact.h5 is complete" in found.value.__notes__[0]


@pytest.mark.parametrize("name", ["check_output", "build_feature_map"])
def test_ctrl_c_says_what_was_released_from_the_beginning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, name, interrupt)
    with pytest.raises(KeyboardInterrupt, match="nothing was released and nothing was written"):
        make_release(ReleaseRequest(data=Path("private"), epsilon=2, workers=0))


def test_a_default_type_that_features_do_not_have_is_refused() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UsageError, match="float64"):
            make_release(ReleaseRequest(data=Path("private"), epsilon=2, workers=0))
    finally:
        torch.set_default_dtype(torch.float32)


def test_ctrl_c_ends_a_loop_over_data_sets(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    calls = 0
    with pytest.raises(KeyboardInterrupt, match="nothing was released and nothing was written"):
        for _ in range(2):
            calls += 1
            with contextlib.suppress(DpmepfError):
                make_release(
                    ReleaseRequest(data=Path("private"), epsilon=2, workers=0),
                    callbacks=ReleaseCallbacks(on_schema=interrupt),
                )
    assert calls == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("epsilon", value) for value in (None, "2", True, [2], 10**400)),
        *(("delta", value) for value in ("1e-5", 1j)),
        *(("classes", value) for value in ("10", {"cat", "dog"}, {"cat": 0}, ["cat", 3])),
        *(("relation", value) for value in ("replace", 1)),
        *(("resolution", value) for value in (28.0, "28")),
        *(("strict", value) for value in ("no", 1)),
        *(("data", value) for value in ("", 3, "a\0b")),
        *(("register", ""), ("encoder", 5), ("output", b"a.h5"), ("workers", False)),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{field} is .*, but has to be "):
        ReleaseRequest(**{"data": Path("private"), "epsilon": 2} | {field: value})


def test_what_is_no_field_is_not_quoted() -> None:
    with pytest.raises(UsageError, match="of type dict, but") as found:
        ReleaseRequest(data=Path("private"), epsilon=2, unit_list={"1.png": "patient-4711"})  # type: ignore[arg-type]
    assert "4711" not in str(found.value)


class Names(str, Enum):  # noqa: UP042  what a StrEnum says is its value
    """Whose `str` is not its value."""

    PETS = "pets"
    CAT = "cat"


def test_members_of_an_enumeration_mean_their_values() -> None:
    """Two names for one data set would be two budgets."""
    request = ReleaseRequest(data=Names.PETS, epsilon=2, dataset_name=Names.PETS, classes=[Names.CAT])  # type: ignore[arg-type]
    assert (request.data, request.dataset_name, request.classes) == (Path("pets"), "pets", ("cat",))
    assert type(request.dataset_name) is str


def test_fields_of_other_kinds_that_mean_the_same_are_taken() -> None:
    found = ReleaseRequest(
        data="private",  # type: ignore[arg-type]
        epsilon=np.float32(2),  # type: ignore[arg-type]
        delta=np.float64(1e-6),
        budget_epsilon=4,
        relation="replace-one",  # type: ignore[arg-type]
        resolution=np.int64(28),  # type: ignore[arg-type]
        classes=["cat", "dog"],
    )
    assert found == ReleaseRequest(
        data=Path("private"),
        epsilon=2.0,
        delta=1e-6,
        budget_epsilon=4.0,
        relation=NeighbouringRelation.REPLACE_ONE,
        resolution=28,
        classes=("cat", "dog"),
    )
    assert type(found.epsilon) is type(found.delta) is float and type(found.resolution) is int
