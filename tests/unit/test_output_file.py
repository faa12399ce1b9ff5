"""What may be written is asked before the work; what a command reads is never replaced by what it writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpmepf.shared.errors import UsageError
from dpmepf.shared.output_file import check_output_file, refuse_inputs


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    existing = tmp_path / "scores.json"
    existing.touch()
    with pytest.raises(UsageError, match="--force"):
        check_output_file(existing, force=False)
    check_output_file(existing, force=True)
    with pytest.raises(UsageError, match="is a folder"):
        check_output_file(tmp_path, force=True)
    with pytest.raises(UsageError, match="there is no folder"):
        check_output_file(tmp_path / "missing" / "scores.json", force=False)
    with pytest.raises(UsageError, match="is a device or a pipe"):
        check_output_file(Path("/dev/full"), force=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a device or a pipe"):
        check_output_file(tmp_path / "pipe", force=True)


def test_an_input_is_not_replaced_by_whatever_name_it_is_called(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "cat").mkdir(parents=True)
    image, table = data / "cat" / "1.png", tmp_path / "table.csv"
    image.touch()
    table.touch()
    (tmp_path / "soft").symlink_to(table)
    (tmp_path / "hard").hardlink_to(table)
    for path in (table, tmp_path / "soft", tmp_path / "hard", data / ".." / "table.csv"):
        with pytest.raises(UsageError, match=r"table.csv|soft|hard"):
            refuse_inputs(path, [data, table])
    with pytest.raises(UsageError, match="lies among what this command reads"):
        refuse_inputs(image, [data, table])
    refuse_inputs(data / "new.h5", [data, table])  # there is nothing to lose
    (tmp_path / "data2").touch()
    refuse_inputs(tmp_path / "data2", [data, table, tmp_path / "absent"])
