"""Image files below folders, as an image source: what `image_layout` says of a folder, a zip or a tar."""

from __future__ import annotations

import numpy as np

from dpmepf.shared.class_names import UNLABELLED, check_class_names
from dpmepf.shared.image_errors import ClassesError, UndeclaredClassError
from dpmepf.shared.image_layout import Layout
from dpmepf.shared.image_source_types import EncodedImageSource, ImageFiles, ImageSource


def open_files(
    members: ImageFiles,
    container: str,
    layout: Layout,
    declared: tuple[str, ...] | None,
    public: bool,
    *,
    levels_above: int = 0,
) -> ImageSource:
    """The images of `layout`, with labels by their class folders; `levels_above` folders come before its names."""
    if layout.class_folders is None:
        if declared is not None and len(declared) > 1:
            raise ClassesError("several classes are declared, but the images are in no class folders: declare one")
        kind, classes, labels = f"flat {container}", declared or (UNLABELLED,), [0] * len(layout.files)
    else:
        kind, classes = (
            f"{container} of class folders",
            declared or check_class_names(layout.class_folders, quoted=public),
        )
        number = {name: label for label, name in enumerate(classes)}
        for folder in layout.class_folders:
            if folder not in number:
                raise UndeclaredClassError(
                    "a class folder is not among the declared classes: add it to --classes, or move it away",
                    location=f"{members.root}: {folder!a}",
                    public=public,
                )
        labels = [number[layout.class_folders[folder]] for folder in layout.folder_numbers]
    return EncodedImageSource(
        members=members,
        names=layout.files,
        levels_above=levels_above + layout.entered.count("/"),
        kind=kind,
        classes=classes,
        classes_declared=declared is not None,
        labels=np.array(labels, np.int64),
        split=layout.split,
        public=public,
    )
