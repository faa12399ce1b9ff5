"""Errors a user can act on: one sentence saying what was found, what is allowed and what to do next."""


class DpmepfError(Exception):
    """Something outside the program is not as needed; the commands print the sentence and exit with `exit_code`.

    A message names what was found, what is allowed and the next step. It never holds a private value: no pixel,
    feature, count or name of a private record.
    """

    exit_code = 1


class UsageError(DpmepfError):
    """The request itself cannot be met (an option, a path or a combination of them)."""

    exit_code = 2
