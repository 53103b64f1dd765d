"""Running the steps of a tree on CuPy: everything but the addresses is made once, a call is a few launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from growarray.backend import Array, namespace
from growarray.contraction.addresses import Table
from growarray.contraction.problem import Pair
from growarray.contraction.program import Program
from growarray.contraction.routines.cupy import (
    Depthwise,
    Launches,
    Place,
    Site,
    chain_gradients,
    chained,
    multiplied,
    sums_nothing,
)
from growarray.contraction.routines.depthwise_text import Chain
from growarray.contraction.step import Step
from growarray.cuda.device import WIDE, contiguous, current, empty, workspace
from growarray.cuda.text import Walk

_FUSED = 64  # taps that the kernels of one launch have together at most


def _span(array: Array) -> int:
    """How far its elements lie apart, in elements."""
    steps = zip(array.shape, array.strides, strict=True)
    return sum((int(size) - 1) * abs(int(step)) for size, step in steps) // int(array.dtype.itemsize)


class _Stored(NamedTuple):
    """Where a partial result lies: a slot of the table of addresses, and the stride of each mode in elements."""

    slot: int
    strides: Mapping[str, int]


def layout(array: Array) -> tuple[Any, ...]:
    """What launches depend on."""
    index = getattr(array.device, "id", None)  # NumPy has a word, and the check refuses it
    return array.dtype, array.shape, array.strides, index


@dataclass(frozen=True)
class _Group:
    """Steps that are launched as one: a single product, or a chain of depthwise ones."""

    steps: tuple[Step, ...]

    @property
    def f(self) -> int:
        """Mask of what comes in."""
        return self.steps[0].f

    @property
    def mask(self) -> int:
        """Mask of what comes out."""
        return self.steps[-1].mask

    @property
    def operands(self) -> tuple[int, ...]:
        """Masks of what comes in, the kernels too."""
        return self.f, *(step.k for step in self.steps)

    @property
    def sums_nothing(self) -> bool:
        """Whether an element of the result is a product of one element of each operand."""
        return all(sums_nothing(step.pair.product) for step in self.steps)

    @property
    def is_chain(self) -> bool:
        """Whether its kernels are all depthwise."""
        return isinstance(self.steps[0].forward, Depthwise)

    def takes(self, step: Step) -> bool:
        """Whether a step can be launched together with these."""
        taps = math.prod(one.pair.product.taps for one in (*self.steps, step))
        same = set(self.steps[0].pair.b) == set(step.pair.b)
        return self.is_chain and isinstance(step.forward, Depthwise) and step.f == self.mask and same and taps <= _FUSED


def grouped(steps: Iterable[Step]) -> list[_Group]:
    """Steps in the groups that are launched as one."""
    groups: list[_Group] = []
    for step in steps:
        at = next((i for i, group in enumerate(groups) if group.takes(step)), None)
        if at is None:
            groups.append(_Group((step,)))
        else:
            groups.append(_Group((*groups.pop(at).steps, step)))
    return groups


def _strides(modes: Sequence[str], sizes: Sequence[int]) -> dict[str, int]:
    """Of a contiguous array."""
    return {mode: math.prod(sizes[place + 1 :]) for place, mode in enumerate(modes)}


def _channels(pair: Pair) -> dict[str, str]:
    """Index of each mode of a product that no axis has."""
    return {m: f"{letter}{i}" for letter in "bsn" for i, m in enumerate(getattr(pair, letter))}


class Launched:
    """The launches of a program for arrays that lie in one way, forward and backward.

    folded : masks of the partial results that are given    keep : whether what a backward pass needs is kept
    """

    def __init__(
        self, program: Program, arrays: Sequence[Array], folded: Mapping[int, Array], keep: bool, tf32: bool = False
    ) -> None:
        self.program, self.problem, self.keep = program, program.problem, keep
        self.dtype, self.itemsize = str(arrays[0].dtype), int(arrays[0].dtype.itemsize)
        self.tf32 = tf32 and self.dtype == "float32"
        self.folded = frozenset(folded)
        self.groups = grouped(step for step in program.steps if step.mask not in folded)
        self.masks = (*(1 << i for i in range(len(arrays))), *folded)
        modes = {step.mask: step.out for step in program.steps}
        modes |= {1 << i: one.modes for i, one in enumerate(self.problem.operands)}
        given = self._given(arrays, folded)
        self.stored = {
            mask: _Stored(slot, {m: s // self.itemsize for m, s in zip(modes[mask], x.strides, strict=True)})
            for slot, (mask, x) in enumerate(zip(self.masks, given, strict=True))
        }
        whole = self.problem.everything
        self.wide = max(map(self.problem.elements, (*modes, whole))) >= WIDE or max(map(_span, given)) >= WIDE
        self.shape = tuple(self.problem.extent(m, whole) for m in self.problem.output)
        self._back: dict[Any, _Backward] = {}
        with current(given[0]):
            self._run = self._made(len(given))

    def _made(self, given: int) -> list[Callable[[Sequence[int]], object]]:
        """The launches of the forward pass, ready to run."""
        whole, keep = self.problem.everything, self.keep
        self.table = table = Table(given + 1, apart=keep)
        factors: dict[int, list[int]] = {}  # of what is not computed by itself
        for group in self.groups:
            parts = [part for mask in group.operands for part in factors.pop(mask, [mask])]
            if (
                group.sums_nothing
                and not keep
                and any(g.sums_nothing and group.mask in g.operands for g in self.groups)
            ):
                factors[group.mask] = parts
                continue
            if group.mask == whole:
                self.stored[whole] = _Stored(given, _strides(self.problem.output, self.shape))
            else:
                self.stored[group.mask] = self.new(table, group.mask)
            apart = len(parts) > len(group.operands)
            table.add(self._multiplied(group.mask, parts) if apart else self._forward(group))
            for used in () if keep else parts:
                table.give(self.stored[used].slot)
        return table.ready()

    def new(self, table: Table, mask: int) -> _Stored:
        """A place for a partial result, or for its gradient."""
        step = next(one for one in self.program.steps if one.mask == mask)
        order = self._order(step)
        sizes = [self.problem.extent(m, mask) for m in order]
        return _Stored(table.take(self.itemsize * math.prod(sizes)), _strides(order, sizes))

    def _order(self, step: Step) -> list[str]:
        """Modes of a partial result as it is stored: the batch first, then channels, then positions.

        A kernel lies as the convolution that takes it has it, since cuDNN takes no other.
        """
        user = next((one for one in self.program.steps if one.k == step.mask), None)
        if user is not None and user.pair.product.is_conv:
            pair = user.pair
            return [m for m in (*pair.b, *pair.n, *pair.s, *(a.name for a in pair.product.axes)) if m in step.out]
        rest = [m for m in step.out if m != self.problem.block]
        return [m for m in step.out if m == self.problem.block] + rest

    def site(self, group: _Group) -> Site:
        """The product of a group, with named indices."""
        pair, problem = group.steps[0].pair, self.problem
        kernels, axes = sum(step.k for step in group.steps), []
        sizes = {
            name: problem.extent(m, group.mask if name[0] != "s" else group.f) for m, name in _channels(pair).items()
        }
        for k, axis in enumerate(pair.product.axes):
            conv = problem.conv.get(axis.name)
            if conv is not None and kernels >> conv.kernel & 1:
                by = conv.axis
                walk = Walk(
                    conv.size, conv.taps, conv.out, by.stride, by.before, by.after, by.dilation, by.padding_mode
                )
            else:
                walk = Walk(axis.size, out=axis.size)
            axes.append(walk)
            sizes |= {f"p{k}": walk.size, f"q{k}": walk.out, f"t{k}": walk.taps}
        b, s, n = (tuple(name for name in sizes if name[0] == letter) for letter in "bsn")
        return Site(self.dtype, sizes, b, s, n, tuple(axes), self.wide, self.tf32)

    def place(self, group: _Group, stored: _Stored, mask: int, letter: str) -> Place:
        """Where a partial result lies, by index; ``letter`` is that of its positions or taps."""
        pair = group.steps[0].pair
        names = _channels(pair) | {axis.name: f"{letter}{k}" for k, axis in enumerate(pair.product.axes)}
        strides = {names[m]: s for m, s in stored.strides.items() if self.problem.extent(m, mask) > 1}
        return Place(stored.slot, strides)

    def chain(self, group: _Group, site: Site) -> Chain:
        """The chain of a group."""
        factors = tuple(self.place(group, self.stored[step.k], step.k, "t").strides for step in group.steps)
        return Chain(site.sizes, site.b, site.axes, factors)

    def kernels(self, group: _Group) -> list[int]:
        """Slots of the kernels."""
        return [self.stored[step.k].slot for step in group.steps]

    def _forward(self, group: _Group) -> Launches:
        site, step = self.site(group), group.steps[0]
        feature = self.place(group, self.stored[group.f], group.f, "p")
        out = self.place(group, self.stored[group.mask], group.mask, "q")
        if group.is_chain:
            return chained(self.chain(group, site), site, self.kernels(group), feature, out, backward=False)
        kernel = self.place(group, self.stored[step.k], step.k, "t")
        found: Launches = step.forward.forward(site, kernel, feature, out, self.table.reserve)
        return found

    def _multiplied(self, mask: int, parts: Sequence[int]) -> Launches:
        """Arrays that nothing is summed of, in one launch."""
        extent, out = self.problem.extent, self.stored[mask].strides
        names = {m: f"q{place}" for place, m in enumerate(out)}
        sizes = {name: extent(m, mask) for m, name in names.items()}
        places = [
            Place(
                self.stored[part].slot,
                {names[m]: s for m, s in self.stored[part].strides.items() if extent(m, part) > 1},
            )
            for part in parts
        ]
        target = Place(self.stored[mask].slot, {names[m]: s for m, s in out.items()})
        return multiplied(sizes, places, target, self.dtype, self.wide)

    def _given(self, arrays: Sequence[Array], folded: Mapping[int, Array]) -> list[Array]:
        """The operands, every mode once, and what is folded."""
        if self.program.masks is not None:
            return [*arrays, *folded.values()]
        return [*self.program.prepared(namespace(*arrays), arrays).values(), *folded.values()]

    def way_back(
        self, arrays: Sequence[Array], folded: Mapping[int, Array], wanted: int
    ) -> tuple[Array, Callable[[Array], dict[int, Array]]]:
        """The result, and a function from its gradient to those by the operands in ``wanted``, by mask."""
        given = self._given(arrays, folded)
        with current(given[0]):
            known = folded.get(self.problem.everything)
            y = empty(self.shape, self.dtype) if known is None else known
            size, temporary = self.table.memory.size, self.table.temporary.size
            held = empty((size,), "uint8").data if self.keep else workspace(size)
            piece = workspace(temporary) if self.keep and temporary else held
            table = [x.data.ptr for x in given]
            table.append(y.data.ptr)
            table += self.table.addresses(held.ptr, piece.ptr)
            for launch in self._run:
                launch(table)

        def back(dy: Array) -> dict[int, Array]:
            if _span(dy) >= WIDE and not self.wide:
                dy = contiguous(dy, dy.dtype)
            key = wanted, dy.strides
            found = self._back.get(key)
            if found is None:
                with current(dy):
                    found = self._back[key] = _Backward(self, wanted, dy)
            gradients = found.run(given, held, dy)
            if self.program.masks is not None:
                return gradients
            return self.program.unprepared(namespace(*arrays), gradients, arrays)

        return y, back


class _Backward:
    """The launches of the way back to some operands."""

    def __init__(self, forward: Launched, wanted: int, dy: Array) -> None:
        self.forward, problem = forward, forward.problem
        self.operands = [1 << i for i in range(len(problem)) if wanted >> i & 1]
        given, kept = len(forward.masks), len(forward.table) - forward.table.given
        # given arrays, the gradient of the output, partial results that are kept, gradients, pieces of work space
        self.table = table = Table(given + 1 + kept + len(self.operands))
        first = given + 1 + kept
        modes = {mask: problem.operands[mask.bit_length() - 1].modes for mask in self.operands}
        self.shapes = {mask: tuple(problem.extent(m, mask) for m in order) for mask, order in modes.items()}
        self.targets = {
            mask: _Stored(first + i, _strides(modes[mask], self.shapes[mask])) for i, mask in enumerate(self.operands)
        }
        strides = {m: s // forward.itemsize for m, s in zip(problem.output, dy.strides, strict=True)}
        gradients = {problem.everything: _Stored(given, strides)}
        # of what is folded too: a transpose gives partial results that nothing reads in place of those it has
        steps = (step for step in forward.program.steps if step.mask not in forward.folded or step.mask & wanted)
        for group in reversed(grouped(steps)):
            if group.mask & wanted and group.mask in gradients:
                d_out = gradients.pop(group.mask)
                gradients |= self._launch(group, d_out, wanted)
                table.give(d_out.slot)
        self._run = table.ready()

    def _target(self, mask: int) -> _Stored:
        return self.targets[mask] if mask in self.targets else self.forward.new(self.table, mask)

    def _launch(self, group: _Group, d_out: _Stored, wanted: int) -> dict[int, _Stored]:
        forward, table = self.forward, self.table
        site, step, found = forward.site(group), group.steps[0], {}
        d_place = forward.place(group, d_out, group.mask, "q")
        feature = forward.place(group, forward.stored[group.f], group.f, "p")
        if group.f & wanted:
            found[group.f] = target = self._target(group.f)
            place = forward.place(group, target, group.f, "p")
            if group.is_chain:
                chain = forward.chain(group, site)
                table.add(chained(chain, site, forward.kernels(group), d_place, place, backward=True))
            else:
                kernel = forward.place(group, forward.stored[step.k], step.k, "t")
                table.add(step.by_feature.d_feature(site, kernel, d_place, place, table.reserve))
        chosen = {i: one.k for i, one in enumerate(group.steps) if one.k & wanted}
        found |= {k: self._target(k) for k in chosen.values()}
        places = {i: forward.place(group, found[k], k, "t") for i, k in chosen.items()}
        if chosen and group.is_chain:
            chain, kernels = forward.chain(group, site), forward.kernels(group)
            table.add(chain_gradients(chain, site, kernels, d_place, feature, places, table.reserve))
        elif chosen:
            table.add(step.by_kernel.d_kernel(site, d_place, feature, places[0], table.reserve))
        return found

    def run(self, given: Sequence[Array], held: Any, dy: Array) -> dict[int, Array]:
        """The gradients, by mask."""
        forward = self.forward
        with current(dy):
            found = {mask: empty(shape, forward.dtype) for mask, shape in self.shapes.items()}
            table = [x.data.ptr for x in given]
            table.append(dy.data.ptr)
            table += forward.table.addresses(held.ptr, 0)
            table += [x.data.ptr for x in found.values()]
            space = workspace(self.table.memory.size)  # held until all is launched: a large one goes back to the pool
            table += self.table.addresses(space.ptr, space.ptr)
            for launch in self._run:
                launch(table)
            return found
