"""Convolutions on CuPy by cuDNN, if it is installed: what it takes without a copy, and what is padded for it before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product
from growarray.contraction.routines.cupy import (
    Dense,
    Launches,
    Place,
    Reserve,
    Site,
    chained,
    contiguous,
    moved,
    operations,
)
from growarray.contraction.routines.depthwise_text import Chain
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD
from growarray.cuda.convolution import Convolution, Layout, available, convolution_workspace
from growarray.cuda.device import WIDE
from growarray.cuda.text import Walk

_LEAST = 1 << 27  # operations below which the own kernel is done before cuDNN is called
_CALL = 26.0 / 7.0  # calls of the machine that one through the frontend takes
_AXES = 3  # of the positions at most
_WINOGRAD, _MANY = 1.8, 128  # how much faster 3 x 3 taps at stride 1 are between so many channels, see below


class Cudnn(Dense):
    """A convolution that sums over channels, by cuDNN; by :class:`Dense` if cuDNN does not take its strides."""

    name: ClassVar[str] = "cudnn"

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """A convolution that is worth the call and sums over channels, if cuDNN's frontend is installed."""
        convolved = library == "cupy" and product.is_conv and (product.s > 1 or product.n > 1)
        return convolved and operations(product) >= _LEAST and available()

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Operations at cuDNN's rate, what is read and written, and its launch.

        TensorLy-Torch's whole layer of CP, 128 channels on 28 x 28 and batch 64, reconstructed, took 260 us on an H100.
        Some 40 of them are its small products before, so cuDNN runs such convolutions by Winograd's algorithm.
        """
        axes = [(axis.taps, axis.stride, axis.dilation) for axis in product.axes if not axis.is_plain]
        fast = axes == [(3, 1, 1)] * 2 and min(product.s, product.n) >= _MANY and way != D_KERNEL
        flops = operations(product) / machine.cudnn * product.itemsize / 4 / (_WINOGRAD if fast else 1)
        return _CALL * machine.call + moved(product) * machine.byte + flops

    def forward(self, site: Site, kernel: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """The product."""
        return self._launches(FORWARD, site, kernel, feature, out, reserve)

    def d_feature(self, site: Site, kernel: Place, d_out: Place, out: Place, reserve: Reserve) -> Launches:
        """Its gradient by the feature map."""
        return self._launches(D_FEATURE, site, kernel, out, d_out, reserve)

    def d_kernel(self, site: Site, d_out: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """Its gradient by the kernel."""
        return self._launches(D_KERNEL, site, out, feature, d_out, reserve)

    def _own(self, way: str, site: Site, kernel: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        if way == FORWARD:
            return super().forward(site, kernel, feature, out, reserve)
        if way == D_FEATURE:
            return super().d_feature(site, kernel, out, feature, reserve)
        return super().d_kernel(site, out, feature, kernel, reserve)

    def _launches(self, way: str, site: Site, kernel: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """The convolution, on a feature map that is padded before it if need be.

        cuDNN's gradient by the kernel is wrong if there is more padding on one side than on the other.
        """
        if all(axis.mode == "zeros" and (way != D_KERNEL or axis.before == axis.after) for axis in site.axes):
            found = self._convolved(way, site, kernel, feature, out, reserve)
            return found or self._own(way, site, kernel, feature, out, reserve)
        margin, inner = _padded(site)
        batch = _batch(site, feature)
        order = [*batch, *site.b, *site.s, *(p for p in site.places("p") if p not in batch)]
        lies, slot = contiguous(inner, order), reserve(inner.count(order), site.dtype)
        found = self._convolved(way, inner, kernel, Place(slot, lies), out, reserve)
        if not found:
            return self._own(way, site, kernel, feature, out, reserve)
        chain = Chain(margin.sizes, (*site.b, *site.s), margin.axes, ())
        padded = Place(slot, {name.replace("p", "q"): stride for name, stride in lies.items()})
        if way == D_FEATURE:
            return [*found, *chained(chain, margin, (), padded, feature, backward=True)]
        return [*chained(chain, margin, (), feature, padded, backward=False), *found]

    def _convolved(self, way: str, site: Site, kernel: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """By cuDNN; empty if it does not take it."""
        one = _convolution(way, site, kernel, feature, out)
        space = None if one is None else convolution_workspace(one)
        if one is None or space is None:
            return []
        otherwise = tuple(self._own(way, site, kernel, feature, out, reserve))
        work = reserve(space, "uint8") if space else feature.slot
        return [one._replace(slots=(feature.slot, kernel.slot, out.slot, work), otherwise=otherwise)]


def _padded(site: Site) -> tuple[Site, Site]:
    """Padding alone, whose outputs are the places of the padded feature map, and the product of that."""
    sizes, margins, inner = dict(site.sizes), list(site.axes), list(site.axes)
    for k, axis in enumerate(site.axes):
        whole = axis.before + axis.size + axis.after
        if not axis.is_plain:
            margins[k] = Walk(axis.size, out=whole, before=axis.before, after=axis.after, mode=axis.mode)
            inner[k] = axis._replace(size=whole, before=0, after=0, mode="zeros")
        sizes[f"p{k}"] = whole
    wide = site.wide or math.prod(sizes[name] for name in (*site.b, *site.s, *site.places("p"))) >= WIDE
    alone = {name: sizes[name.replace("q", "p")] for name in site.places("q")}
    alone |= {name: site.sizes[name] for name in (*site.b, *site.s, *site.places("p"))}
    margin = site._replace(sizes=alone, axes=tuple(margins), wide=wide)
    return margin, site._replace(sizes=sizes, axes=tuple(inner), wide=wide)


def _batch(site: Site, feature: Place) -> tuple[str, ...]:
    """The index of images: of those along which nothing moves, the one with the largest stride."""
    plain = [f"p{k}" for k, axis in enumerate(site.axes) if axis.is_plain]
    return tuple(sorted(plain, key=lambda name: feature.strides.get(name, 0))[-1:])


def _convolution(way: str, site: Site, kernel: Place, feature: Place, out: Place) -> Convolution | None:
    """The convolution as cuDNN has it; None if it does not."""
    batch = _batch(site, feature)
    steps = {k: feature.strides.get(f"p{k}", 0) for k in range(len(site.axes)) if f"p{k}" not in batch}
    axes = sorted(steps, key=lambda k: -steps[k])
    images = [name.replace("p", "q") for name in batch]
    image = _layout(site, feature, [batch, (*site.b, *site.s), *((f"p{k}",) for k in axes)])
    taps = _layout(site, kernel, [(*site.b, *site.n), site.s, *((f"t{k}",) for k in axes)])
    result = _layout(site, out, [images, (*site.b, *site.n), *((f"q{k}",) for k in axes)])
    if len(axes) > _AXES or image is None or taps is None or result is None:
        return None
    walks = [site.axes[k] for k in axes]
    if len(axes) == 1:  # it takes two axes or three
        image, taps, result, walks = _wider(image), _wider(taps), _wider(result), [Walk(1), *walks]
    return Convolution(
        way, image, taps, result, tuple(w.before for w in walks), tuple(w.after for w in walks),
        tuple(w.stride for w in walks), tuple(w.dilation for w in walks), site.dtype, site.tf32,
    )  # fmt: skip


def _layout(site: Site, place: Place, dims: Sequence[Sequence[str]]) -> Layout | None:
    """Sizes and strides of some indices each; None if they do not lie one in the other, or run backwards."""
    sizes, strides, step = [], [], 1
    for names in reversed(dims):
        found = [(site.sizes[name], place.strides.get(name, 0)) for name in names if site.sizes[name] > 1]
        if any(inner < 1 for _, inner in found):
            return None
        if any(outer != size * inner for (_, outer), (size, inner) in itertools.pairwise(found)):
            return None
        sizes.append(math.prod(size for size, _ in found))
        strides.append(found[-1][1] if found else step)
        step = sizes[-1] * strides[-1]
    return Layout(tuple(reversed(sizes)), tuple(reversed(strides)))


def _wider(one: Layout) -> Layout:
    """With an axis of one position before the last."""
    (*sizes, size), (*strides, stride) = one
    return Layout((*sizes, 1, size), (*strides, size * stride, stride))
