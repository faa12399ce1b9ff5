"""What may be written is asked before the work; nothing is replaced but what the command wrote before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpmepf.shared.errors import UsageError
from dpmepf.shared.output_file import ARTIFACT, REPORT, WEIGHTS, Kind, check_output_file


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    existing = tmp_path / "scores.json"
    existing.touch()
    with pytest.raises(UsageError, match="--force"):
        check_output_file(existing, REPORT, force=False)
    check_output_file(existing, REPORT, force=True)
    with pytest.raises(UsageError, match="is a folder"):
        check_output_file(tmp_path, REPORT, force=True)
    with pytest.raises(UsageError, match="there is no folder"):
        check_output_file(tmp_path / "missing" / "scores.json", REPORT, force=False)
    with pytest.raises(UsageError, match="is a device or a pipe"):
        check_output_file(Path("/dev/full"), REPORT, force=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a device or a pipe"):
        check_output_file(tmp_path / "pipe", REPORT, force=True)


@pytest.mark.parametrize(
    ("kind", "own"),
    [(ARTIFACT, b"\x89HDF\r\n\x1a\n..."), (REPORT, b'{"fid": 1}'), (WEIGHTS, b"\x10\0\0\0\0\0\0\0{}")],
    ids=["artifact", "report", "weights"],
)
def test_force_replaces_a_file_of_the_same_kind_alone(kind: Kind, own: bytes, tmp_path: Path) -> None:
    before, other = tmp_path / "before", tmp_path / "other"
    before.write_bytes(own)
    check_output_file(before, kind, force=True)
    for content in (b"image,person\n", b"\x89PNG\r\n\x1a\n", b"{", b"\x89HDF", own[1:]):
        if content[kind[2] :].startswith(kind[1]):
            continue
        other.write_bytes(content)
        link = tmp_path / f"link{len(content)}"
        link.symlink_to(other)
        for path in (other, link):
            with pytest.raises(UsageError, match=f"exists and is no {kind[0]}, and --force replaces nothing else"):
                check_output_file(path, kind, force=True)
