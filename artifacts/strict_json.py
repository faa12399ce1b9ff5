"""Trusted core: JSON as artifacts hold it: no repeated key, no NaN or infinity, one spelling.

One value can be spelled in many ways: with spaces in between, `A` as `\\u0041`, 0.5 as 5.00e-1. Which of them was taken
could say something that no reader is shown. So an artifact holds the one text that would be written of what was parsed.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from dpmepf.artifacts.errors import TextError


def parse_json(text: str, name: str) -> Any:
    """Parse `text`, the short JSON of the object called `name`, or raise `TextError`."""

    def refuse_constant(constant: str) -> NoReturn:
        raise TextError(f"{name}: the number {constant} is not allowed; every number must be finite")

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise TextError(f"{name}: the key {key[:80]!a} appears twice")
            found[key] = value
        return found

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique_keys)
    except RecursionError:
        raise TextError(f"{name}: the JSON is nested too deeply") from None
    except ValueError as error:
        raise TextError(f"{name}: not valid JSON ({str(error)[:120]!a})") from None


def parse_names(text: str, name: str, *, most: int) -> list[str]:
    """Parse `text`, a JSON list of at most `most` strings, of the object called `name`, or raise `TextError`.

    String by string: a long text of other JSON would be millions of little objects before one could be refused.
    """
    decoder, place = json.JSONDecoder(), 1
    names: list[str] = []
    spelled_otherwise = TextError(f"{name}: expected a JSON list of names, spelled as artifacts spell it")
    while text.startswith("[") and text.startswith('"', place):
        if len(names) == most:
            raise TextError(f"{name}: more than {most} names")
        try:
            found, place = decoder.raw_decode(text, place)
        except ValueError as error:
            raise TextError(f"{name}: not valid JSON ({str(error)[:120]!a})") from None
        names.append(found)
        if place == len(text) - 1 and text.endswith("]"):
            return names
        if not text.startswith(", ", place):
            raise spelled_otherwise
        place += 2
    raise spelled_otherwise


def check_spelling(text: str, canonical: str, name: str) -> None:
    """Refuse, with `TextError`, a text other than the `canonical` one: that which artifacts hold of the same value."""
    if text != canonical:
        raise TextError(f"{name}: its JSON has spaces, numbers or letters spelled otherwise than any artifact's")
