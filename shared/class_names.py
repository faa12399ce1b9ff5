"""Class names, which are public: how they are written on a command line and what a name may be."""

from __future__ import annotations

from collections.abc import Sequence

from dpmepf.shared.image_errors import ClassesError

UNLABELLED = "unlabelled"
_LONGEST_NAME = 200  # bytes; a class becomes a folder of the synthetic data set, and file systems stop at 255
_MOST_CLASSES = 100_000


def numbered_classes(count: int) -> tuple[str, ...]:
    """The names "0", "1", … of `count` classes that are known by number only."""
    if not 1 <= count <= _MOST_CLASSES:
        raise ClassesError(f"--classes {count} is not allowed: the number of classes is 1 to {_MOST_CLASSES}")
    return tuple(str(number) for number in range(count))


def parse_classes(text: str) -> tuple[str, ...]:
    """Read `--classes`: a whole number ("10": ten classes named 0 to 9) or names between commas ("cat,dog")."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return numbered_classes(int(text) if len(text) < 10 else 10**9)
    return check_class_names([name.strip() for name in text.removesuffix(",").split(",")])


def check_class_names(names: Sequence[str], *, quoted: bool = True) -> tuple[str, ...]:
    """Return `names` as a tuple, or raise `ClassesError` if one could not name a folder or appears twice.

    The message shows the name if `quoted`: what the user typed, but not what was met in private data.
    """
    if not 1 <= len(names) <= _MOST_CLASSES:
        raise ClassesError(f"the number of classes must be 1 to {_MOST_CLASSES}: name them with --classes")
    for name in names:
        allowed = (
            name.isprintable()
            and name.strip() == name != ""
            and not name.startswith(".")
            and not set(name) & set("/\\")
            and len(name.encode()) <= _LONGEST_NAME
        )
        if not allowed:
            shown = ascii(name[:_LONGEST_NAME]) if quoted else "a folder or a stored text"
            raise ClassesError(
                f"{shown} cannot name a class: a name is 1 to {_LONGEST_NAME} bytes of printable "
                "text, without slashes, outer spaces or a leading dot; rename it"
            )
    if len(set(names)) < len(names):
        raise ClassesError("a class name appears twice: each class needs its own name")
    return tuple(names)


def undeclared(form: str) -> ClassesError:
    """Of private data whose form does not name the classes."""
    return ClassesError(
        f"{form} cannot tell the classes, and which labels occur is private: declare them, for example --classes 10 "
        "(labels 0 to 9) or --classes cat,dog"
    )
