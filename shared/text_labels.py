"""Labels that are text: names of classes, or their numbers.

Each text is read by one rule, whatever the others are: it is the name of a class or else the number of one. Where names
look like numbers both readings would be possible, so only the names 0, 1, … of `--classes COUNT` may.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpmepf.shared.class_names import check_class_names, numbered_classes, undeclared
from dpmepf.shared.image_errors import ClassesError

_NO_CLASS = -1  # a label that `ImageSource` refuses


def classes_of_texts(
    texts: Sequence[str], *, declared: tuple[str, ...] | None, form: str, public: bool
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Class names, and for each of the different `texts` that occur the label it stands for, -1 for none.

    Args:
        texts: the different labels, as they are written.
        declared: the class names; None takes them from the labels, which only those of public data may tell.
        form: of the data, for the message that classes have to be declared.
        public: whether the labels are.
    """
    numbers = [int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None for text in texts]
    if declared is None:
        if not public:
            raise undeclared(form)
        counted = [number for number in numbers if number is not None]
        if counted and len(counted) < len(texts):
            raise ClassesError("some labels are numbers, others names: declare the names with --classes")
        declared = (
            check_class_names(sorted(texts)) if texts and not counted else numbered_classes(max(counted, default=0) + 1)
        )
    elif any(name.isdigit() for name in declared) and declared != numbered_classes(len(declared)):
        raise ClassesError(
            "a label like 1 could be the name of a class or its number: declare names that are no numbers, or "
            f"--classes {len(declared)} for the numbers from 0"
        )
    by_name = {name: label for label, name in enumerate(declared)}
    labels = [
        by_name.get(text, _NO_CLASS if number is None else number) for text, number in zip(texts, numbers, strict=True)
    ]
    return declared, np.array(labels, np.int64)
