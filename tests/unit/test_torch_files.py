"""Files that are none of torch.save's: each of their readers says so in its own sentence, whatever is in them.

And files of safetensors, while which are read Ctrl-C stays what it is.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpmepf.shared.encoders import BUILTIN_WEIGHTS, EncoderWeightsError, load_encoder
from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.pretraining import PretrainingSettings, pretrain_encoder
from dpmepf.shared.torch_files import TorchFileError, load_safetensors, load_torch_file
from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE, FORMAT, CheckpointError, load_checkpoint
from dpmepf.synthesize.settings import settings_for

RNG = np.random.default_rng(0)
QUICK = settings_for("quick").to_dict()
ODD = [b"", b"junk", b"no checkpoint\n", b"\x80", *(b"\x80" + RNG.bytes(length) for length in range(1, 40))]


def readings(path: Path) -> list[tuple[type[DpmepfError], str, Callable[[], object]]]:
    """Of each reader: its error, a part of the sentence, and the call."""
    images, labels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8) % 2
    settings = PretrainingSettings(epochs=1, resolutions=(8,), batch_size=8)
    return [
        (EncoderWeightsError, "does not hold weights", lambda: load_encoder("resnet18", path)),
        (CheckpointError, "is damaged: begin again", lambda: load_checkpoint(path.parent)),
        (
            UsageError,
            "is no checkpoint of this command: delete it",
            lambda: pretrain_encoder(images, labels, 2, settings, checkpoint=path),
        ),
    ]


def test_odd_bytes_are_refused_without_a_warning(tmp_path: Path) -> None:
    for content in ODD:
        (tmp_path / "odd.pt").write_bytes(content)
        with warnings.catch_warnings(), pytest.raises(TorchFileError, match=r"not a file that torch\.save wrote"):
            warnings.simplefilter("error")
            load_torch_file(tmp_path / "odd.pt")


@pytest.mark.parametrize("content", ["junk", "a list", "a tensor", "a dictionary", "cut off"])
def test_each_reader_names_the_file_and_what_to_do(content: str, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    if content == "junk":
        path.write_bytes(b"junk")
    else:
        values = {"a list": [1, 2], "a tensor": torch.zeros(2), "a dictionary": {"run": 1}}
        torch.save(values.get(content, {"run": torch.zeros(99)}), path)
    if content == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    for error, sentence, read in readings(path):
        if content == "a dictionary" and error is UsageError:
            sentence = "belongs to other settings"
        with pytest.raises(error, match=sentence) as caught:
            read()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": torch.zeros(2)},
        {"settings": QUICK | {"steps": torch.ones(2)}},
        {"seconds": 10**400},
        {"state": [1]},
        {"settings": None},
    ],
)
def test_a_checkpoint_of_odd_values_is_damaged(change: dict[str, object], tmp_path: Path) -> None:
    content = {"format": FORMAT, "artifact_sha256": "", "settings": QUICK, "state": {}, "seconds": 1.0}
    torch.save(content, tmp_path / CHECKPOINT_FILE)
    assert load_checkpoint(tmp_path).seconds == 1.0
    torch.save(content | change, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(CheckpointError, match="is damaged: begin again"):
        load_checkpoint(tmp_path)


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(torch, "load", exhausted)
    with pytest.raises(MemoryError):
        load_torch_file(tmp_path / "any.pt")


def test_what_torch_save_wrote_is_read_and_a_missing_file_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "file.pt")
    assert load_torch_file(tmp_path / "file.pt")["a"].tolist() == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        load_torch_file(tmp_path / "none.pt")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of POSIX")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # interrupted before `with` has it
def test_an_interrupt_while_safetensors_are_read_is_an_interrupt() -> None:
    """safetensors' own `load_file` makes a ValueError of one in fifteen that come while it reads."""
    reading = False

    def interrupt(*_: object) -> None:
        if reading:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        times = []
        for _ in range(6):
            times.append(-time.perf_counter())
            load_safetensors(BUILTIN_WEIGHTS)
            times[-1] += time.perf_counter()
        for share in np.linspace(0.02, 1, 400):
            try:
                reading = True
                signal.setitimer(signal.ITIMER_REAL, share * min(times))
                load_safetensors(BUILTIN_WEIGHTS)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                reading = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 40
