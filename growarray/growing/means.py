"""Means of the statistics of a place, for a rule to plan from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, is_cupy, namespace, to_host
from growarray.errors import GrowthError
from growarray.growing.neighbour import Neighbour
from growarray.growing.rule import LayerMeans, PlaceMeans
from growarray.growing.update import rounding_floor

_LARGEST = 1024  # rows up to which a matrix is decomposed on the host: a guess, no decomposition was timed on a GPU


def layer_means(layer: Any, pseudo_inverse: bool = False) -> LayerMeans:
    """Means of the statistics of this layer."""
    statistics, floor = layer.statistics, rounding_floor(layer.weight.data)
    return LayerMeans(
        statistics.mean_s, statistics.m, statistics.e, statistics.m_prev, statistics.p, floor, pseudo_inverse
    )


def means_of_layer(layer: Any, pseudo_inverse: bool = False) -> PlaceMeans:
    """Means around a layer, for a rule to plan from; those of a delta only if the layer cannot read new neurons."""
    means = layer_means(layer, pseudo_inverse)
    s_prev = layer.statistics.s_prev if layer.statistics.sees_front else None
    ones = None if s_prev is None else _ones(layer.previous)
    return PlaceMeans((means,), lambda: of_goals(means.e(), *_goals((layer,))), s_prev, ones)


def means_of_merge(merge: Any, pseudo_inverse: bool = False) -> PlaceMeans:
    """Means around a merge, for a rule to plan from: of each next layer, and of the full activity."""
    statistics, readers = merge.statistics, merge.readers

    def of_reader(i: int, rows: slice, goals: slice) -> LayerMeans:
        return replace(
            layer_means(readers[i], pseudo_inverse), m_prev=lambda: statistics.m_prev()[:, goals],
            p=lambda: statistics.p_of_readers()[i], e=lambda: statistics.e()[rows, rows],
        )  # fmt: skip

    rows, goals = _cuts([r.out_features for r in readers]), _cuts([r.goal_width for r in readers])
    means = tuple(map(of_reader, range(len(readers)), rows, goals))
    return PlaceMeans(means, lambda: of_goals(statistics.e(), *_goals(readers)), statistics.s_prev, _ones(merge))


@contextmanager
def on_host(*owners: Any) -> Iterator[None]:
    """Inside, means of layers, merges and graphs on a GPU are NumPy arrays, copied at once, unless one is large.

    The host decomposes small matrices faster, and every question about their values would wait for the GPU.
    """
    statistics = {id(each): each for owner in owners if owner and owner.statistics for each in owner.statistics.all}
    on_gpu = [each for each in statistics.values() if each.host_mean is None and each.samples and is_cupy(each.total)]
    if max((size for statistic in on_gpu for size in statistic.total.shape), default=0) > _LARGEST:
        on_gpu = []
    try:
        for statistic, total in zip(on_gpu, to_host([each.total for each in on_gpu]), strict=True):
            statistic.host_mean = total / statistic.samples
        yield
    finally:
        for statistic in on_gpu:
            statistic.host_mean = None


def check_readers(merge: Any) -> None:
    """Raise unless all next layers of a merge can read its new neurons, and in the same way."""
    for reader in merge.readers:
        if not reader.growth_taps:
            raise GrowthError(
                f"{merge.name}: next layer {reader.name} cannot read new channels; use a RestrictedConv2dGrowingModule "
                "or a FullConv2dGrowingModule"
            )
        if merge.spatial and reader.reads is None:
            raise NotImplementedError(
                f"{merge.name}: next layer {reader.name} reads images as features, so channels cannot be added before "
                "it; construct the merge without allow_growing"
            )
    ways = {(reader.reads is None, reader.every_tap and reader.reads) for reader in merge.readers}
    if len(ways) > 1:
        raise NotImplementedError(
            f"{merge.name}: its next layers would read new neurons in {len(ways)} different ways; supported: linear "
            "layers, restricted convolutions, or full convolutions of one geometry"
        )


def _ones(front: Neighbour) -> int | None:
    """The column of ones of the first layer at the front that has a bias, among what they all read."""
    end = 0
    for layer in front.layers_before:
        end += int(layer.stream_width)
        if layer.use_bias:
            return end - 1
    return None


def _cuts(widths: Sequence[int]) -> list[slice]:
    return list(itertools.starmap(slice, itertools.pairwise([0, *itertools.accumulate(widths)])))


def _goals(readers: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Outputs of each reader, and the number of taps through which each reads a new neuron."""
    outputs = [reader.out_features for reader in readers]
    return outputs, [reader.goal_width // max(o, 1) for reader, o in zip(readers, outputs, strict=True)]


def of_goals(e: Array, outputs: Sequence[int], taps: Sequence[int]) -> Array:
    """E over the columns of M_prev; of a layer that reads by several taps, once for each tap.

    e : over the outputs of all readers, side by side    outputs, taps : of each reader
    """
    if max(taps) == 1:
        return e
    each = np.repeat(np.arange(e.shape[0]), np.repeat(taps, outputs))
    tap = np.concatenate([np.tile(np.arange(n), o) for n, o in zip(taps, outputs, strict=True)])
    xp, rows = namespace(e), asarray(each, like=e)
    of_outputs = xp.take(xp.take(e, rows, axis=0), rows, axis=1)
    return of_outputs * asarray(tap[:, None] == tap, like=e, dtype=e.dtype)
