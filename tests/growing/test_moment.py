"""TensorStatistic: float64 sums that add, never touch the caller's arrays, and know how precise they are."""

from __future__ import annotations

import math
from typing import Any

import array_api_strict
import numpy as np
import pytest

from growarray.backend import device_of, to_numpy
from growarray.contraction.sums import RunningSum
from growarray.errors import GrowthError, ShapeError
from growarray.growing import JoinedStream, Stream, TensorStatistic, TensorStatisticWithEstimationError, cross_moment
from tests.conftest import Library, frozen

RNG = np.random.default_rng(2)
BATCHES = [(frozen(RNG.standard_normal((2, 3)) * n + n), n) for n in (4, 1, 7, 3, 5)]


def collected(batches: list[Any], **options: Any) -> TensorStatistic:
    statistic = TensorStatistic((2, 3), **options)
    for value, samples in batches:
        statistic.update(value, samples)
    return statistic


def test_the_mean_is_the_sum_over_the_samples(xp: Library) -> None:
    statistic = collected([(xp.asarray(value), n) for value, n in BATCHES])
    np.testing.assert_allclose(to_numpy(statistic()), sum(v for v, _ in BATCHES) / 20, rtol=1e-15)
    assert statistic.samples == 20


def test_sums_are_float64_whatever_comes_in(xp: Library) -> None:
    statistic = TensorStatistic()
    for value in (1.0, 2.0**-30, 2.0**-30):
        statistic.update(xp.asarray(np.full(2, value, np.float32)), 1)
    assert to_numpy(statistic()).dtype == np.float64
    assert to_numpy(statistic()).tolist() == [(1.0 + 2.0**-29) / 3] * 2


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
def test_the_callers_arrays_are_neither_changed_nor_kept(dtype: type) -> None:
    statistic = TensorStatistic()
    values = [np.ones(2, dtype), np.full(2, 2.0, dtype)]
    for value in values:
        statistic.update(value, 1)
    assert [value.tolist() for value in values] == [[1.0, 1.0], [2.0, 2.0]]  # fact statistic_aliases_first_update
    for value in values:
        value[:] = 99.0
    assert statistic().tolist() == [1.5, 1.5]
    statistic()[:] = 99.0
    statistic.state_dict()["sum"][:] = 99.0
    assert statistic().tolist() == [1.5, 1.5]


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_statistics_of_shards_add_up_to_one(cut: int) -> None:
    whole = collected(BATCHES, trace_precision=0.0)
    shards = [collected(BATCHES[:cut], trace_precision=0.0), collected(BATCHES[cut:], trace_precision=0.0)]
    before = [shard().copy() for shard in shards]
    total = sum(shards, TensorStatistic())
    np.testing.assert_allclose(total(), whole(), rtol=1e-14)
    assert (total.samples, total.batches) == (whole.samples, whole.batches)
    assert total.trace == pytest.approx(whole.trace, rel=1e-12)
    assert total.error() == pytest.approx(whole.error(), rel=1e-12)
    for shard, mean in zip(shards, before, strict=True):
        assert np.array_equal(shard(), mean)
    for statistic in (total, whole):  # the sum goes on as one statistic would, its trace too
        statistic.update(*BATCHES[0])
    np.testing.assert_allclose(total(), whole(), rtol=1e-14)
    assert total.trace == pytest.approx(whole.trace, rel=1e-12)


def test_adding_keeps_name_shape_and_function_of_the_one_that_has_them() -> None:
    function = lambda: (np.ones((2, 3)), 1)  # noqa: E731
    total = TensorStatistic() + collected(BATCHES, name="S", update_function=function)
    assert total.shape == (2, 3)
    assert total.name == "S"
    assert total.update().samples == 21


def test_statistics_of_two_shapes_do_not_add() -> None:
    with pytest.raises(ShapeError, match=r"statistics of shapes \(2,\) and \(3,\) cannot be added"):
        TensorStatistic().update(np.ones(2), 1) + TensorStatistic().update(np.ones(3), 1)
    with pytest.raises(TypeError, match="unsupported operand"):
        TensorStatistic() + 1  # type: ignore[operator]


@pytest.mark.parametrize("cut", range(6))
def test_a_saved_statistic_goes_on_as_if_nothing_had_happened(cut: int, xp: Library) -> None:
    batches = [(xp.asarray(value), n) for value, n in BATCHES]
    whole = collected(batches, trace_precision=0.05)
    state = collected(batches[:cut], trace_precision=0.05).state_dict()
    resumed = TensorStatistic((2, 3), trace_precision=0.05)
    resumed.load_state_dict(state, like=batches[0][0])
    for batch in batches[cut:]:
        resumed.update(*batch)
    assert np.array_equal(to_numpy(resumed()), to_numpy(whole()))
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    for name in ("samples", "batches", "trace", "computes_trace"):
        assert resumed.state_dict()[name] == whole.state_dict()[name]
    assert device_of(resumed()) == device_of(batches[0][0])


BAD_STATES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a_key_less": ({"sum": None}, GrowthError, r"state has keys \['sum'\], expected"),
    "another_shape": (
        TensorStatistic().update(np.ones(4), 1).state_dict(),
        ShapeError,
        r"state has shape \(4,\), expected \(2, 3\)",
    ),
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_state_that_does_not_fit_changes_nothing(kind: str) -> None:
    state, error, message = BAD_STATES[kind]
    statistic = collected(BATCHES)
    before = statistic().copy()
    with pytest.raises(error, match=message):
        statistic.load_state_dict(state)
    assert np.array_equal(statistic(), before)
    assert statistic.samples == 20


BAD_VALUES = {
    "nan": (np.full((2, 3), np.nan), 1, GrowthError, "NaN or infinite"),
    "inf": (np.full((2, 3), np.inf), 1, GrowthError, "NaN or infinite"),
    "inf_of_both_signs": (np.array([[np.inf, -np.inf, 0.0]] * 2), 1, GrowthError, "NaN or infinite"),
    "shape": (np.ones((3, 2)), 1, ShapeError, r"update has shape \(3, 2\), expected \(2, 3\)"),
    "negative_samples": (np.ones((2, 3)), -1, GrowthError, "found -1 samples"),
    "no_samples_given": (np.ones((2, 3)), None, GrowthError, "found None samples"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "by_first_update"])
def test_a_bad_value_is_refused_and_changes_nothing(kind: str, declared: bool, xp: Library) -> None:
    value, samples, error, message = BAD_VALUES[kind]
    statistic = TensorStatistic((2, 3) if declared else None, name="S(x)", trace_precision=0.1)
    statistic.update(xp.asarray(np.ones((2, 3))), 2)
    if xp.name == "cupy" and "NaN" in message:  # there it is found when a growth is planned, so that nobody waits here
        assert not np.isfinite(to_numpy(statistic.update(xp.asarray(value), samples)())).all()
        return
    with pytest.raises(error, match=rf"S\(x\).*{message}"):
        statistic.update(xp.asarray(value), samples)
    assert to_numpy(statistic()).tolist() == [[0.5] * 3] * 2
    assert (statistic.samples, statistic.batches) == (2, 1)


def test_large_finite_values_are_not_called_infinite() -> None:
    assert TensorStatistic().update(np.full(9, 3e38, np.float32), 1)()[0] == pytest.approx(3e38, rel=1e-6)


@pytest.mark.parametrize("empty", [TensorStatistic(), TensorStatistic().update(np.zeros(2), 0)], ids=["new", "zero"])
def test_the_mean_of_nothing_does_not_exist(empty: TensorStatistic) -> None:
    with pytest.raises(ValueError, match="there are no samples, so there is no mean"):
        empty()


def test_a_negative_dimension_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"declared shape \(2, -1\) has a negative dimension"):
        TensorStatistic((2, -1))


def test_the_update_function_is_called_once_a_batch() -> None:
    calls = []
    statistic = TensorStatistic((1,), lambda **options: calls.append(options) or (np.ones(1), 1))  # type: ignore[func-returns-value]
    statistic.update(desired_activation=5).update().update()
    assert calls == [{"desired_activation": 5}]
    statistic.updated = False
    statistic.update()
    assert (len(calls), statistic.samples) == (2, 2)
    statistic.reset()
    assert (statistic.samples, statistic.updated) == (0, False)


def test_without_function_or_value_there_is_nothing_to_add() -> None:
    with pytest.raises(GrowthError, match="no value given and no update function"):
        TensorStatistic().update()


def test_passes_over_one_batch_count_its_samples_once() -> None:
    statistic = TensorStatistic(trace_precision=0.0).update(np.ones(1), 4)
    statistic.update(np.ones(1), 4, count_samples=False)
    assert (statistic.samples, statistic.batches, statistic().tolist()) == (4, 1, [0.5])


def test_sums_live_on_the_declared_device() -> None:
    here, there = array_api_strict.Device("device1"), array_api_strict.Device("CPU_DEVICE")
    statistic = TensorStatistic(device=there)
    for _ in range(2):
        statistic.update(array_api_strict.ones(2, device=here), 1)
    assert statistic().device == there
    assert to_numpy(statistic()).tolist() == [1.0, 1.0]


# How precise is it?


def test_trace_and_error_are_those_of_the_batch_means() -> None:
    statistic = TensorStatisticWithEstimationError((2, 3), trace_precision=0.0)
    for value, samples in BATCHES:
        statistic.update(value, samples)
    means = [np.sum((v / n) ** 2) for v, n in BATCHES]
    trace = np.mean(means) - np.sum(statistic() ** 2)
    assert statistic.trace == pytest.approx(trace, rel=1e-12)
    assert statistic.error() == pytest.approx(trace / 5, rel=1e-12)
    assert statistic.relative_error() == pytest.approx(math.sqrt(trace / 5) / np.linalg.norm(statistic()), rel=1e-12)


def test_the_error_estimates_the_true_distance_from_the_expectation() -> None:
    squares, estimates = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        statistic = TensorStatistic(trace_precision=0.0)
        for _ in range(30):
            statistic.update((1.0 + rng.standard_normal((8, 3))).sum(axis=0), 8)
        squares.append(float(np.sum((statistic() - 1.0) ** 2)))
        estimates.append(statistic.error())
    assert np.mean(estimates) == pytest.approx(np.mean(squares), rel=0.15)


def test_the_stopping_rule_needs_two_batches_and_enough_precision() -> None:
    statistic = TensorStatistic(trace_precision=1e-3)
    assert not statistic.precise(1e9)
    statistic.update(np.array([1.0]), 1)
    assert statistic.relative_error() == math.inf
    statistic.update(np.array([1.1]), 1)
    assert statistic.relative_error() == pytest.approx(0.05 / math.sqrt(2) / 1.05, rel=1e-6)
    assert statistic.precise(0.04)
    assert not statistic.precise(0.03)


def test_a_batch_without_samples_tells_nothing() -> None:
    statistic = TensorStatistic(trace_precision=0.0).update(np.array([1.0]), 1).update(np.array([2.0]), 1)
    before = (statistic.error(), statistic.batches, statistic().tolist())
    statistic.update(np.zeros(1), 0)
    assert (statistic.error(), statistic.batches, statistic().tolist()) == before


def test_the_trace_is_left_alone_once_it_no_longer_moves() -> None:
    statistic = TensorStatistic(trace_precision=0.5)
    for value in (1.0, 2.0, 1.0, 2.0, 1.0, 2.0):
        statistic.update(np.array([value]), 1)
    assert not statistic.computes_trace
    held = statistic.trace
    assert statistic.update(np.array([100.0]), 1).trace == held
    assert statistic.batches == 7


def test_an_error_that_is_not_estimated_is_refused() -> None:
    with pytest.raises(GrowthError, match="construct it with trace_precision"):
        collected(BATCHES).error()


# Many samples in single precision.

STRUCTURED = {
    "constant": lambda rows: np.full((rows, 2), 0.1),
    "binary": lambda rows: 1.1 * (np.arange(rows)[:, None] * np.array([[7, 11]]) % 13 < 6),
    "offset": lambda rows: 10.0 + np.sin(np.arange(rows)[:, None] * np.array([[0.1, 0.7]])),
}


@pytest.mark.parametrize("kind", STRUCTURED)
def test_four_million_float32_samples_keep_six_digits(kind: str) -> None:
    batch, rounds = frozen(STRUCTURED[kind](4096).astype(np.float32)), 1000
    samples = len(batch)
    wide = np.concatenate([batch, np.ones((samples, 1))], axis=1)
    expected = wide.T @ wide / samples
    statistic = TensorStatistic()
    for _ in range(rounds):
        statistic.update(cross_moment(Stream(batch, bias=True)), samples)
    assert np.abs(statistic() - expected).max() <= 1e-6 * np.abs(expected).max()
    assert statistic.samples == rounds * samples
    running = np.cumsum(np.tile(batch[:, 0] ** 2, rounds))[-1]  # one after the other, in single precision
    assert running.dtype == np.float32
    assert abs(float(running) / (rounds * samples) / expected[0, 0] - 1.0) > 1e-4


def test_a_statistic_that_reuses_its_buffer_sums_the_same_and_spares_the_callers_array() -> None:
    pieces = [frozen(RNG.standard_normal((30, 3))) for _ in range(4)]
    given: list[object] = []

    def update(piece: np.ndarray, out: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        given.append(out)
        return cross_moment(piece, out=out), len(piece)

    reusing, plain = TensorStatistic(None, update, reuse=True), TensorStatistic(None, update)
    for piece in pieces:
        for statistic in (reusing, plain):
            statistic.updated = False
            statistic.update(piece=piece)
    np.testing.assert_array_equal(reusing(), plain())
    assert [out is None for out in given] == [False, True] * 4
    reusing.reset()
    assert reusing.samples == 0


def _streams(dtype: type, rows: int = 200, bad: float = 1.0) -> dict[str, Any]:
    hosts = [RNG.standard_normal((rows, width)).astype(dtype) for width in (70, 3, 65)]
    hosts[1][0, 1] *= bad
    x, y, z = (frozen(host) for host in hosts)
    return {
        "one": Stream(x, bias=True),
        "without_ones": JoinedStream((Stream(x), Stream(y))),
        "several": JoinedStream((Stream(x, bias=True), Stream(y), Stream(z, bias=True))),
        "shared": JoinedStream((Stream(x, bias=True), Stream(x, bias=True), Stream(x))),
        "shared_apart": JoinedStream((Stream(y, bias=True), Stream(z, bias=True), Stream(y))),
    }


def _reusing(streams: list[Any]) -> TensorStatistic:
    """S of one stream after another, added in place from the second on."""
    left = iter(streams)

    def update(out: Any = None) -> tuple[Any, int]:
        stream = next(left)
        return cross_moment(stream, out=out), stream.samples

    return TensorStatistic(None, update, name="S(x)", reuse=True)


def _update(statistic: TensorStatistic) -> None:
    statistic.updated = False
    statistic.update()


@pytest.mark.parametrize("kind", _streams(np.float64))
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-14), (np.float32, 1e-6)], ids=["float64", "float32"])
def test_moments_added_in_place_are_those_of_all_batches(kind: str, dtype: type, near: float) -> None:
    streams = [_streams(dtype, rows)[kind] for rows in (200, 64, 5000, 130, 4096, 1)]
    statistic, plain = _reusing(streams), TensorStatistic()
    for stream in streams:
        _update(statistic)
        plain.update(cross_moment(stream), stream.samples)
    wide = [stream.materialise().astype(np.float64) for stream in streams]
    expected = sum(a.T @ a for a in wide) / plain.samples
    scale = np.abs(expected).max()
    assert statistic.samples == plain.samples
    assert np.abs(statistic() - expected).max() <= near * scale
    assert np.abs(plain() - expected).max() <= near * scale
    assert np.array_equal(statistic(), statistic().T)


def test_a_sum_that_is_added_to_in_place_can_be_read_saved_and_added_at_any_time() -> None:
    streams = [_streams(np.float32)["several"] for _ in range(6)]
    plain = [cross_moment(stream) for stream in streams]
    statistic = _reusing(streams)
    for count in range(1, 4):
        _update(statistic)
        np.testing.assert_allclose(statistic() * statistic.samples, sum(plain[:count]), rtol=0, atol=1e-3)
    copied = TensorStatistic()
    copied.load_state_dict(statistic.state_dict())
    statistic.update(plain[3], 200)
    _update(statistic)  # takes the fourth stream
    total = copied + statistic
    expected = sum(plain[:3]) + sum([*plain[:3], plain[3], plain[3]])
    np.testing.assert_allclose(total() * total.samples, expected, rtol=0, atol=1e-3)
    assert (copied.samples, total.samples) == (600, 1600)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_a_bad_batch_leaves_a_sum_in_place_as_it_was(bad: float) -> None:
    good = _streams(np.float32)["several"]
    statistic = _reusing([good, good, _streams(np.float32, bad=bad)["several"], Stream(frozen(np.ones((9, 2)))), good])
    _update(statistic)
    _update(statistic)
    before = statistic().copy()
    with pytest.raises(GrowthError, match=r"S\(x\).*NaN or infinite"):
        _update(statistic)
    with pytest.raises(ShapeError, match=r"S\(x\): update has shape \(2, 2\), expected \(140, 140\)"):
        _update(statistic)
    assert np.array_equal(statistic(), before)
    assert statistic.samples == 400
    _update(statistic)
    assert statistic.samples == 600


@pytest.mark.parametrize(("left", "right"), [("several", "one"), ("shared", "several"), ("one", "shared_apart")])
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-14), (np.float32, 1e-6)], ids=["float64", "float32"])
def test_moments_of_two_streams_are_added_in_place(left: str, right: str, dtype: type, near: float) -> None:
    batches = [_streams(dtype, rows) for rows in (200, 64, 5000, 1)]
    pairs = [(batch[left], batch[right]) for batch in batches]
    total = RunningSum()
    assert all(cross_moment(a, b, out=total) is total for a, b in pairs)
    expected = sum(a.materialise().astype(np.float64).T @ b.materialise().astype(np.float64) for a, b in pairs)
    assert np.abs(total.array - expected).max() <= near * np.abs(expected).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_a_bad_batch_of_two_streams_leaves_the_sum_as_it_was(bad: float) -> None:
    good, broken, total = _streams(np.float32), _streams(np.float32, bad=bad), RunningSum()
    cross_moment(good["one"], good["several"], out=total)
    before = np.array(total.array)
    assert cross_moment(broken["one"], broken["several"], out=total) is not total
    assert cross_moment(good["several"], good["one"], out=total) is not total
    np.testing.assert_array_equal(total.array, before)


def test_other_libraries_add_a_whole_moment(xp: Library) -> None:
    hosts = [RNG.standard_normal((20, 3)).astype(np.float32) for _ in range(3)]
    statistic = _reusing([Stream(xp.asarray(host), bias=True) for host in hosts])
    for _ in hosts:
        _update(statistic)
    expected = sum(to_numpy(cross_moment(Stream(host, bias=True))) for host in hosts) / 60
    np.testing.assert_allclose(to_numpy(statistic()), expected, rtol=1e-6, atol=1e-7)


def test_a_result_is_written_where_it_is_wanted_or_refused() -> None:
    x, out = frozen(RNG.standard_normal((30, 3))), np.empty((3, 3))
    assert cross_moment(x, out=out) is out
    np.testing.assert_array_equal(out, cross_moment(x))
    with pytest.raises(ValueError, match=r"out has shape \(2, 2\), expected \(3, 3\) float64"):
        cross_moment(x, out=np.empty((2, 2)))
