"""The fit recovers the machine that measurements were made with; measuring gives what the fit can read."""

import math
from dataclasses import asdict, replace

import array_api_strict
import numpy as np
import pytest

from growarray.contraction.calibrate import Measurements, fit, measure
from growarray.contraction.machine import CPU, GPU, Machine, from_dict, to_dict

KNOWN = Machine(
    "known", rate=4.2e10, half_rows=7.0, half_columns=33.0, half_depth=2.5, element=3.1e-10, copied=4.4e-10,
    gathered=1.9e-9, byte=1.2e-10, call=2.2e-6, step=3.3e-5, cache=1 << 20, cores=4,
)  # fmt: skip
SHAPES = [
    (m, k, n)
    for m, k, n in [(2, 128, 2048), (16, 64, 3136), (128, 8, 2048), (128, 32, 784), (128, 128, 49), (256, 256, 196),
                    (8, 16, 784), (64, 64, 16), (512, 512, 49), (32, 128, 2048), (128, 128, 3136)]
]  # fmt: skip
CHAIN = (8, 8, 529)


def simulated(machine: Machine, noise: float = 0.0) -> Measurements:
    """What a machine that follows the model exactly would measure, each figure off by a factor of about 1 + noise."""
    rng = np.random.default_rng(0)

    def off(seconds: float) -> float:
        return seconds * math.exp(noise * rng.standard_normal())

    def samples(each: float) -> tuple[tuple[int, float], ...]:
        return tuple((count, off(machine.call + each * count)) for count in (10_000, 30_000, 100_000))

    step = machine.step + machine.call + machine.product(1, *CHAIN)
    return Measurements(
        products=tuple((*s, off(machine.call + machine.product(1, *s))) for s in SHAPES),
        calls=(off(machine.call),) * 3,
        passes=samples(machine.element),
        copies=samples(machine.copied),
        gathers=samples(machine.gathered),
        streams=tuple((count, off(machine.call + machine.byte * count)) for count in (1 << 24, 1 << 26)),
        chains=tuple((steps, off(1e-4 + steps * step)) for steps in (100, 200, 400)),
        chain_product=CHAIN,
    )


def test_every_coefficient_is_recovered():
    found = fit(simulated(KNOWN), CPU, name="known", cores=KNOWN.cores)
    assert asdict(found) == {
        key: value if isinstance(value, str) else pytest.approx(value, rel=1e-4) for key, value in asdict(KNOWN).items()
    }


def test_noise_of_ten_percent_leaves_predictions_close():
    found = fit(simulated(KNOWN, noise=0.1), CPU, name="known", cores=KNOWN.cores)
    for shape in SHAPES:
        assert found.product(1, *shape) == pytest.approx(KNOWN.product(1, *shape), rel=0.3)
    for name in ("element", "copied", "gathered", "byte", "call"):
        assert getattr(found, name) == pytest.approx(getattr(KNOWN, name), rel=0.3)


def test_one_product_that_was_disturbed_does_not_spoil_the_fit():
    clean = simulated(KNOWN)
    first, *rest = clean.products
    disturbed = replace(clean, products=((*first[:3], 5 * first[3]), *rest))
    assert fit(disturbed, CPU, name="known").rate == pytest.approx(KNOWN.rate, rel=0.25)


def test_measurements_that_leave_less_than_nothing_still_give_a_machine():
    clean = simulated(KNOWN)
    nothing = replace(clean, passes=((1000, 1e-9),), copies=((1000, 0.0),), chains=((10, 1.0), (20, 1.0)))
    found = fit(nothing, CPU, name="odd")
    assert from_dict(to_dict(found)) == found


@pytest.mark.parametrize("arrays", [np, array_api_strict], ids=["numpy", "strict"])
def test_measuring_gives_what_the_fit_reads(arrays, monkeypatch):
    monkeypatch.setattr("growarray.contraction.calibrate._STREAM", 1 << 16)
    if arrays is array_api_strict:
        monkeypatch.setattr("growarray.contraction.calibrate.to_device", lambda x, device: arrays.asarray(x))
    told: list[tuple[int, int]] = []
    found = measure(arrays, cores=2, seconds=0.05, progress=lambda done, total: told.append((done, total)))
    count = sum(
        map(len, (found.products, found.calls, found.passes, found.copies, found.gathers, found.streams, found.chains))
    )
    assert told == [(done, count) for done in range(1, count + 1)]
    assert len(found.products) >= 15
    for samples in (found.products, found.passes, found.copies, found.gathers, found.streams, found.chains):
        assert all(value > 0 for sample in samples for value in sample)
    machine = fit(found, CPU, name="here", cores=2)
    assert from_dict(to_dict(machine)) == machine
    assert (machine.name, machine.cores, machine.cache) == ("here", 2, CPU.cache)


def test_on_a_gpu_a_call_is_a_launch_and_the_rate_of_what_convolves_is_fitted():
    known = replace(GPU, name="known", call=5e-6, element=4e-12, byte=4e-13, cudnn=3e13)
    rows, depth, columns = CHAIN
    overhead, step = 2.5e-5, known.step + 2 * known.call + known.product(1, rows, depth, 48 * columns, each=0.0)
    found = Measurements(
        products=tuple((*s, overhead + known.product(1, *s)) for s in SHAPES),
        calls=(overhead,) * 2,
        passes=((1 << 23, overhead + known.element * (1 << 23)),),
        copies=((1 << 23, 2 * overhead),),
        gathers=((1 << 23, 2 * overhead),),
        streams=((1 << 26, overhead + known.byte * (1 << 26)),),
        chains=tuple((48 * n, overhead + n * step) for n in (2, 4, 6)),
        chain_product=CHAIN,
        launched=True,
        convolutions=(("cudnn", 6e10, overhead + 6e10 / known.cudnn),),
    )
    machine = fit(found, GPU, name="here")
    for name in ("call", "element", "byte", "cudnn", "implicit", "step"):
        assert getattr(machine, name) == pytest.approx(getattr(known, name), rel=0.02), name
    for shape in SHAPES:
        assert machine.product(1, *shape) == pytest.approx(known.product(1, *shape), rel=0.3)
    again = replace(found, convolutions=(("implicit", 6e10, overhead + 6e10 / 7e12),))
    assert fit(again, GPU, name="here").implicit == pytest.approx(7e12, rel=0.02)
