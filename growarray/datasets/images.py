"""Images in a folder, one subfolder for each class; read by Pillow, which comes with the extra ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from growarray.errors import DataError, shown


def image_sizes(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Channels, height and width of samples of this shape (n, h, w) or (n, c, h, w); None if they are no images.

    >>> image_sizes((100, 28, 28)), image_sizes((100, 3, 8, 9)), image_sizes((100, 64))
    ((1, 28, 28), (3, 8, 9), None)
    """
    return {3: (1, *shape[1:]), 4: shape[1:]}.get(len(shape))


def read_images(folder: Path) -> tuple[np.ndarray, list[str], list[Path]]:
    """Images (n, c, h, w) of one byte a number, the subfolder of each, and its path.

    Images in the folder itself have no class, ``''``. Grey images have one channel, unless others have colours; names
    that start with a dot are left out.

    Raises DataError: there are none, one cannot be read, one has another size than the first, or some have a class and
    some have not; ImportError without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f'{folder}: {error}; install it with: pip install "growarray[cli]"') from error
    entries = sorted(path for path in folder.rglob("*") if not any(p[0] == "." for p in path.relative_to(folder).parts))
    paths = [path for path in entries if path.is_file()]
    labels = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    if not paths or (len(set(labels)) > 1 and "" in labels):
        what = f"{paths[labels.index('')]} beside subfolders" if paths else "no images"
        raise DataError(f"{folder}: expected a subfolder of images for each class, found {what}")
    arrays: list[Any] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                arrays.append(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: cannot be read as an image ({error}); mend it or take it away") from error
        if arrays[-1].shape[:2] != arrays[0].shape[:2]:
            sizes, first = ("x".join(map(str, a.shape[:2])) for a in (arrays[-1], arrays[0]))
            raise DataError(
                f"{path}: the image has {sizes} pixels, expected {first} as {shown(paths[0].name)} has; "
                "bring all images to one size"
            )
    channels = max(array.ndim for array in arrays) * 2 - 3
    planes = (array[..., None] if array.ndim == 2 else array for array in arrays)
    return np.stack([np.broadcast_to(a, (*a.shape[:2], channels)).transpose(2, 0, 1) for a in planes]), labels, paths
