"""The whole way from Python, as README shows it; and a release that is asked for as no command would."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from PIL import Image

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.register import Register
from dpmepf.embed.request import ReleaseRequest
from dpmepf.embed.run import ReleaseCallbacks, make_release
from dpmepf.shared.errors import DpmepfError
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
    (tmp_path / "script.py").write_text(shown)
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
