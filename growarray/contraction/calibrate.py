"""The coefficients of the machine model from measurements: :func:`measure` makes them, :func:`fit` reads them."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from growarray.backend import is_cupy, is_numpy, to_device
from growarray.contraction.blas import single_threaded
from growarray.contraction.machine import Machine
from growarray.contraction.plan import plan
from growarray.contraction.threads import run_tasks

Sample = tuple[int, float]
"""How many elements, bytes or steps, and the seconds that they took."""

_LEAST = 1e-14  # seconds that a coefficient is at least: noise may leave less than nothing
_HALF = (0.1, 1e4)  # between which the half sizes are looked for
_PLANE = 1 << 15  # elements of a pass: a few such arrays lie in the cache of a core
_STREAM = 1 << 26  # bytes that are copied, more than any cache holds
_SIDE, _CHANNELS = 23, 8
_IMAGES = 48  # that a GPU takes at a time; a CPU takes one, so that a step is one product on one core
_OTHERS = 12  # measurements that are not products
_LAUNCHES = 2.0  # calls that a product on a GPU takes, as its routine counts them
_WIDER = 1 << 8  # times as many elements that a pass has on a GPU, which would not be busy with fewer
_DTYPE = np.dtype("float32")

Call = Callable[[], object]


@dataclass(frozen=True)
class Measurements:
    """Seconds of each operation in the machine model, float32, one core unless stated otherwise.

    products : (rows, depth, columns, seconds) of one product each    calls : seconds of calls that do next to nothing
    passes : elements of one arithmetic pass in cache    copies, gathers : elements copied in runs, and with a stride
    streams : bytes read and written by all cores    chains : steps of plans of small products, and seconds
    chain_product : (rows, depth, columns) of each step
    launched : whether a step is a launch on a GPU    convolutions : routine, operations and seconds of one
    """

    products: tuple[tuple[int, int, int, float], ...]
    calls: tuple[float, ...]
    passes: tuple[Sample, ...]
    copies: tuple[Sample, ...]
    gathers: tuple[Sample, ...]
    streams: tuple[Sample, ...]
    chains: tuple[Sample, ...]
    chain_product: tuple[int, int, int]
    launched: bool = False
    convolutions: tuple[tuple[str, float, float], ...] = ()


def fit(found: Measurements, base: Machine, *, name: str, cores: int = 1) -> Machine:
    """The machine whose model fits the measurements best; the cache size is that of ``base``.

    The rate of a product and its half sizes are those with the least squared error of the logarithm of the seconds. On
    a GPU a call is a launch, which is what a step more costs beside its product, not a call into the array library.
    """
    call = max(statistics.median(found.calls), _LEAST)
    machine = _product_model(found.products, replace(base, name=name, cores=cores), call)
    machine = replace(
        machine,
        call=call,
        element=_each(found.passes, call),
        copied=_each(found.copies, call),
        gathered=_each(found.gathers, call),
        byte=_each(found.streams, call),
    )
    if not found.launched:
        return replace(machine, step=_step(found, machine))
    rows, depth, columns = found.chain_product
    own = machine.product(1, rows, depth, _IMAGES * columns, each=machine.small) + machine.step
    rates: dict[str, Any] = {"call": max((_IMAGES * _more(found) - own) / _LAUNCHES, _LEAST)}
    for routine, operations, seconds in found.convolutions:
        rates[routine] = operations / max(seconds - call, seconds / 10)
    return replace(machine, **rates)


def _product_model(products: Sequence[tuple[int, int, int, float]], machine: Machine, call: float) -> Machine:
    machine = replace(machine, call=call)
    sizes = [product[:3] for product in products]
    logs = np.log([seconds for *_, seconds in products])

    def of(coefficients: np.ndarray) -> Machine:
        rate, rows, columns, depth = (float(c) for c in np.exp(coefficients))
        return replace(machine, rate=rate, half_rows=rows, half_columns=columns, half_depth=depth)

    def errors(coefficients: np.ndarray) -> np.ndarray:
        model = of(coefficients)
        return np.log([model.call + model.product(1, *size) for size in sizes]) - logs

    best = max(2.0 * math.prod(size) / seconds for size, seconds in zip(sizes, np.exp(logs), strict=True))
    start = np.log([1.2 * best, 4.0, 8.0, 8.0])
    low, high = (np.log([factor * best, *[half] * 3]) for factor, half in zip((0.2, 20.0), _HALF, strict=True))
    from scipy import optimize  # slow to import, and only calibration needs it

    return of(optimize.least_squares(errors, start, bounds=(low, high), loss="soft_l1", f_scale=0.2).x)


def _each(samples: Sequence[Sample], call: float) -> float:
    """Seconds of one element, without the call."""
    return max(statistics.median((seconds - call) / count for count, seconds in samples), _LEAST)


def _step(found: Measurements, machine: Machine) -> float:
    """Seconds that one step more costs, less those of its product: from every pair of chains of different length."""
    own = machine.call + machine.product(1, *found.chain_product)
    return max(_more(found) - own, machine.call / 10)


def _more(found: Measurements) -> float:
    """Seconds that one step more costs, of one image."""
    pairs = itertools.combinations(sorted(found.chains), 2)
    return statistics.median((b - a) / (n - m) for (m, a), (n, b) in pairs if n > m)


def measure(
    xp: Any,
    *,
    cores: int,
    seconds: float = 40.0,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measurements:
    """Measure this machine with arrays of one library, in about so many seconds.

    xp : NumPy, or the namespace of the arrays of a GPU    cores : streams that run side by side on a CPU
    device : as :func:`growarray.contraction.plan` takes it
    progress : is told the measurements that are done, and how many there are
    """
    shapes = _product_shapes()
    share = seconds / (len(shapes) + 24)
    rng = np.random.default_rng(0)
    done = itertools.count(1)

    def timed(call: Call, shares: int = 1) -> float:
        found = _seconds(call, shares * share)
        if progress is not None:
            progress(next(done), len(shapes) + _OTHERS + (device is not None))
        return found

    def draw(*shape: int) -> Any:
        return to_device(rng.standard_normal(shape, _DTYPE), device)

    def alone(call: Call) -> float:
        return single_threaded(lambda: timed(call))

    products = [(m, k, n, alone(_product_call(xp, draw(m, k), draw(k, n)))) for m, k, n in shapes]
    calls = [alone(_product_call(xp, draw(4, 4), draw(4, 4))), alone(_pass_call(draw(4), draw(4)))]
    launched = is_cupy(draw(1))
    plane = _PLANE * _WIDER if launched else _PLANE
    passes = [(plane * k, alone(_pass_call(draw(plane * k), draw(plane * k)))) for k in (1, 2)]
    copies, gathers = (
        [_window_sample(xp, draw, stride, channels, alone) for channels in (16, 64)] for stride in (1, 2)
    )
    streams = [(2 * _STREAM, timed(_stream_call(xp, draw(_STREAM // _DTYPE.itemsize), cores), 4))]
    images = _IMAGES if launched else 1
    chains = [(steps * images, timed(_chain_call(draw, steps, images, device), 2)) for steps in (2, 4, 6)]
    product = (_CHANNELS, _CHANNELS, _SIDE * _SIDE)
    convolutions = [_convolution(draw, device, timed)] if launched else []
    return Measurements(
        tuple(products),
        tuple(calls),
        tuple(passes),
        tuple(copies),
        tuple(gathers),
        tuple(streams),
        tuple(chains),
        product,
        launched,
        tuple(convolutions),
    )


def _product_shapes() -> Sequence[tuple[int, int, int]]:
    """(rows, depth, columns) as factorized layers have them: one size small at a time, and a few small ones."""
    shapes = {(m, 128, 2048) for m in (2, 8, 32, 128, 256)}
    shapes |= {(128, k, 2048) for k in (2, 8, 32, 64, 256)}
    shapes |= {(128, 128, n) for n in (16, 49, 196, 784, 3136)}
    shapes |= {(16, 64, 3136), (64, 16, 3136), (16, 16, 784), (32, 32, 784), (512, 512, 49), (256, 256, 196)}
    return sorted(shapes)


def _product_call(xp: Any, a: Any, b: Any) -> Call:
    if is_numpy(a):
        return partial(np.matmul, a, b, out=np.empty((a.shape[0], b.shape[1]), a.dtype))
    return _waiting(lambda: xp.matmul(a, b))


def _pass_call(a: Any, b: Any) -> Call:
    if is_numpy(a):
        return partial(np.add, a, b, out=np.empty_like(a))
    return _waiting(lambda: a + b)


def _window_sample(
    xp: Any, draw: Callable[..., Any], stride: int, channels: int, timed: Callable[[Call], float]
) -> Sample:
    """Copying what one tap reads of some channels, as partial im2col does."""
    source, out = draw(channels, 58, 58), 56 // stride
    window = source[:, 1 : 1 + 56 : stride, 2 : 2 + 56 : stride]
    if is_numpy(source):
        call: Call = partial(np.copyto, np.empty((channels, out, out), source.dtype), window)
    else:
        call = _waiting(lambda: xp.asarray(window, copy=True))
    return channels * out * out, timed(call)


def _stream_call(xp: Any, source: Any, cores: int) -> Call:
    """A copy, cut in one piece a core."""
    if not is_numpy(source):
        return _waiting(lambda: xp.asarray(source, copy=True))
    target = np.zeros_like(source)
    pieces = [slice(*pair) for pair in itertools.pairwise(np.linspace(0, source.size, cores + 1).astype(int))]
    return partial(run_tasks, [partial(np.copyto, target[piece], source[piece]) for piece in pieces])


def _chain_call(draw: Callable[..., Any], steps: int, images: int, device: str | None) -> Call:
    """A plan of so many small products, one after the other on all images: a convolution with a single position."""
    names = [f"c{i}" for i in range(steps + 1)]
    factors = [f"{names[1]} {names[0]} y x", *(f"{b} {a}" for a, b in itertools.pairwise(names[1:]))]
    equation = f"n {names[0]} y x, {', '.join(factors)} -> n {names[-1]} y x | y, x"
    shapes = [(images, _CHANNELS, _SIDE, _SIDE), (_CHANNELS, _CHANNELS, 1, 1), *[(_CHANNELS, _CHANNELS)] * (steps - 1)]
    path = [(0, 1), *((0, left) for left in range(steps - 1, 0, -1))]
    chain = plan(equation, *shapes, optimize=path, device=device)
    arrays = [draw(*shape) for shape in shapes]
    return _waiting(lambda: chain(*arrays))


def _convolution(
    draw: Callable[..., Any], device: str | None, timed: Callable[[Call], float]
) -> tuple[str, float, float]:
    """A dense convolution of 3 x 3 taps, by the routine that runs it there."""
    shapes = (64, 64, 28, 28), (64, 64, 3, 3)
    dense = plan("n c y x, o c y x -> n o y x | y, x", *shapes, padding=1, device=device)
    arrays = [draw(*shape) for shape in shapes]
    return dense.steps[0].routine, float(dense.flops), timed(_waiting(lambda: dense(*arrays)))


def _waiting(call: Callable[[], Any]) -> Call:
    """The call, and waiting for the device of its result if there is one to wait for."""

    def run() -> None:
        wait = getattr(getattr(call(), "device", None), "synchronize", None)
        if wait is not None:
            wait()

    return run


def _seconds(call: Call, share: float) -> float:
    """Median seconds of one call, over turns of calls that last a millisecond, for ``share`` seconds."""
    start = time.perf_counter()
    call()
    call()
    count = 1
    turns: list[float] = []
    while len(turns) < 3 or time.perf_counter() - start < share:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        turns.append((time.perf_counter() - begin) / count)
        count = max(1, min(1000, int(1e-3 / max(turns[-1], 1e-9))))
    return statistics.median(turns)
