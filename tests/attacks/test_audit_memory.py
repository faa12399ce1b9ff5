"""A real `dpmepf-audit` process on the largest artifacts, Opacus and PyTorch included: below a gibibyte."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifact_examples import FEATURE_MAP, example_ledger
from limited_process import MEMORY

from dpmepf.artifacts.artifact import LARGEST_SIZE, Artifact
from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.artifacts.ledger import LARGEST_CLASS_COUNT, LARGEST_DIMENSION

# The kernel's own peak of the process; getrusage's would include that of the process which started it.
PROGRAM = """
import sys
from pathlib import Path
from dpmepf.artifacts.audit_command import main
try:
    main()
finally:
    sys.stderr.write(Path("/proc/self/status").read_text())
"""


def audited_with_peak(path: Path, *options: str) -> tuple[str, int]:
    """What `dpmepf-audit path options` prints in a process of its own, and the most bytes that were resident in it."""
    command = [sys.executable, "-c", PROGRAM, str(path), *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = re.search(r"^VmHWM:\s+(\d+) kB$", finished.stderr, flags=re.MULTILINE)
    assert found is not None
    return finished.stdout, int(found[1]) * 1024


def write_large(path: Path, classes: tuple[str, ...]) -> None:
    """An artifact of these classes with as many numbers as are allowed, that compress well."""
    ledger = example_ledger(class_count=len(classes), feature_dimension=LARGEST_SIZE // len(classes))
    random = np.random.default_rng(0)
    artifact = Artifact(
        noisy_sums=random.integers(0, 256, (ledger.class_count, ledger.feature_dimension)),
        noisy_counts=random.integers(0, 256, ledger.class_count),
        classes=classes,
        feature_map=FEATURE_MAP,
        ledger=ledger,
    )
    write_artifact(path, artifact)


def test_auditing_as_many_features_as_are_allowed_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    write_large(tmp_path / "a.h5", tuple("abcdefgh"[: LARGEST_SIZE // LARGEST_DIMENSION]))
    table, peak = audited_with_peak(tmp_path / "a.h5")
    assert "Every claim holds" in table and "Opacus PRV" in table
    assert peak < MEMORY


@pytest.mark.slow
def test_auditing_as_many_classes_as_are_allowed_with_long_names_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    names = tuple(f"{number:06d}" + "é" * 97 for number in range(LARGEST_CLASS_COUNT))  # 200 bytes; 588 in JSON
    write_large(tmp_path / "a.h5", names)
    report, peak = audited_with_peak(tmp_path / "a.h5", "--json")
    assert '"valid": true' in report and '"Opacus PRV"' in report
    assert peak < MEMORY
