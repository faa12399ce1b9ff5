"""The console of every command: progress and messages on stderr by rich, results on stdout."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dpmepf.shared import __version__
from dpmepf.shared.errors import DISK_ERRORS, DpmepfError, without_details

P = ParamSpec("P")
R = TypeVar("R")

console = Console(stderr=True)

with_version = click.version_option(__version__, message="%(prog)s %(version)s")


class NamedPath(click.Path):
    """A path on the command line, as `Path`; an empty one, as of a variable that is not set, is not this folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("it is empty, where a path belongs: is a variable not set?", param, ctx)
        return super().convert(value, param, ctx)


class RateColumn(ProgressColumn):
    """Units finished per second, from the task's own running estimate."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self.unit}/s", style="progress.data.speed")


def progress_bar(unit: str, *, transient: bool = False) -> Progress:
    """A progress display on stderr with count, rate in `unit` per second, elapsed time and time remaining."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


def reports_errors(
    *, private_data: bool = False, private_names: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a command so that failures end in one sentence on stderr and an exit status, without a traceback.

    `DpmepfError` exits with its own status, what the system refuses of a file with 1, Ctrl-C with 130. Any other
    exception is a defect of ours: it keeps its traceback, except where the command touches private data
    (`private_data`), where only its type and place in our code are shown, because its text could quote a private value.
    There, and where a command reads files whose names may be private (`private_names`), no file is named.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except DpmepfError as error:
                _fail(str(error), error.exit_code)
            except KeyboardInterrupt as error:
                _fail(str(error) or "interrupted", 130)
            except OSError as error:
                sentence = DISK_ERRORS.get(error.errno or 0)
                if private_data:
                    if os.environ.get("DPMEPF_DEBUG"):
                        raise
                    _fail(without_details(error), 1)
                if isinstance(error.filename, str) and not private_names:
                    _fail(f"{error.filename}: {sentence or f'{error.strerror}: choose another path'}", 1)
                if sentence is None:
                    raise
                _fail(sentence, 1)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as error:
                if not private_data or os.environ.get("DPMEPF_DEBUG"):
                    raise
                _fail(without_details(error), 1)

        return wrapper

    return decorate


def _fail(sentence: str, exit_code: int) -> NoReturn:
    console.print(Text("Error: ", style="bold red") + Text(sentence), soft_wrap=True)
    sys.exit(exit_code)
