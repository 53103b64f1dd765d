"""Batches drawn anew in every epoch, from arrays that may be on disk, with small shifts of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, device_of, namespace
from growarray.errors import ShapeError, shown
from growarray.networks.data import batches
from growarray.ops.sizes import whole_number


class Batches:
    """Batches of samples and targets, to iterate over as often as there are epochs; nothing else is held in memory.

    x, target : arrays, or files that NumPy maps: each batch reads its own samples
    size : samples a batch, the last may be smaller    shuffle : another order in every epoch
    seed : of order and changes; an epoch is drawn from it and from :attr:`epoch`, which counts the passes
    shift : for images (n, c, h, w), the most pixels by which each is moved, up, down and aside; zeros come in
    flip : whether half of the images are mirrored left to right    crop : (h, w) of a window at a random place of each

    :meth:`plain` has the same samples in order and unchanged, those of ``crop`` at the centre.

    Raises ShapeError: samples and targets differ in number, or there is something to change and the samples are no
    images; ValueError, TypeError: an option makes no sense.

    >>> import numpy as np
    >>> data = Batches(np.zeros((5, 1, 8, 8)), np.arange(5), 2, shift=1, crop=(6, 6))
    >>> [(x.shape, target.tolist()) for x, target in data.plain()]
    [((2, 1, 6, 6), [0, 1]), ((2, 1, 6, 6), [2, 3]), ((1, 1, 6, 6), [4])]
    """

    def __init__(
        self,
        x: Array,
        target: Array,
        size: int = 32,
        *,
        shuffle: bool = True,
        seed: int = 0,
        shift: int = 0,
        flip: bool = False,
        crop: Sequence[int] | None = None,
    ) -> None:
        if x.shape[0] != target.shape[0]:
            raise ShapeError(f"Batches: {x.shape[0]} samples, {target.shape[0]} targets; the numbers must agree")
        self.x, self.target, self.size = x, target, whole_number("Batches", "size", size, 1)
        self.shuffle, self.seed, self.flip = bool(shuffle), whole_number("Batches", "seed", seed, 0), bool(flip)
        self.shift = whole_number("Batches", "shift", shift, 0)
        self.epoch = 0
        self.crop = None if crop is None else tuple(whole_number("Batches", "crop", n, 1) for n in crop)
        if self._changes and x.ndim != 4:
            raise ShapeError(f"Batches: samples have shape {tuple(x.shape)}, images need (n, c, h, w)")
        crop = self.crop
        if crop and (len(crop) != 2 or crop[0] > x.shape[2] or crop[1] > x.shape[3]):
            raise ValueError(f"Batches: crop is {shown(crop)}, expected (h, w) within {tuple(x.shape[2:])}")

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.x.shape[0])

    @property
    def _changes(self) -> bool:
        return bool(self.shift or self.flip or self.crop)

    def __repr__(self) -> str:
        options = ("samples", "size", "shuffle", "seed", "shift", "flip", "crop")
        return f"Batches({', '.join(f'{name}={getattr(self, name)}' for name in options)})"

    def __len__(self) -> int:
        return -(-self.samples // self.size)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        for x, target in batches(self.x, self.target, self.size, rng if self.shuffle else None):
            yield self._changed(x, rng) if self._changes else x, target

    def plain(self) -> Iterator[tuple[Array, Array]]:
        """The samples in order, without changes; of ``crop`` the window at the centre."""
        for x, target in batches(self.x, self.target, self.size):
            if self.crop is not None:
                top, left = ((m - n) // 2 for n, m in zip(self.crop, x.shape[2:], strict=True))
                x = x[:, :, top : top + self.crop[0], left : left + self.crop[1]]
            yield x, target

    def _changed(self, x: Array, rng: np.random.Generator) -> Array:
        """Every image at a place of its own within its border, some mirrored."""
        xp, (n, _, *sizes), border = namespace(x), x.shape, self.shift
        height, width = sizes if self.crop is None else self.crop
        for axis in (2, 3) if border else ():
            shape = [border if i == axis else int(size) for i, size in enumerate(x.shape)]
            zeros = xp.zeros(shape, dtype=x.dtype, device=device_of(x))
            x = xp.concat([zeros, x, zeros], axis=axis)
        tops = rng.integers(0, sizes[0] + 2 * border - height, size=n, endpoint=True).tolist()
        lefts = rng.integers(0, sizes[1] + 2 * border - width, size=n, endpoint=True).tolist()
        mirrored = (rng.random(n) < 0.5).tolist() if self.flip else [False] * n
        images: list[Any] = []
        for i, (top, left, turn) in enumerate(zip(tops, lefts, mirrored, strict=True)):
            image = x[i, :, top : top + height, left : left + width]
            images.append(xp.flip(image, axis=2) if turn else image)
        return xp.stack(images)
