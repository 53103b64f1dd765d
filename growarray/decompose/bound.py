"""The smallest rank that keeps an error bound: of the weights, or of the output on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from growarray.backend import Array
from growarray.decompose.arguments import check_choice, check_modes, check_options, options_of
from growarray.decompose.cp import cp
from growarray.decompose.inputs import check_bound, check_tensor
from growarray.decompose.rank import largest_cp_rank
from growarray.decompose.ring import tensor_ring
from growarray.decompose.tt import tensor_train
from growarray.decompose.tucker import tucker
from growarray.decompose.whiten import mode_moment, output_error
from growarray.errors import ShapeError, shown

Rank = int | tuple[int, ...]
"""A CP rank, or the ranks of Tucker or of a tensor train (ends included)."""

_KINDS: dict[str, Callable[..., Any]] = {
    "cp": cp,
    "tucker": tucker,
    "tt": tensor_train,
    "ring": tensor_ring,
    "tr": tensor_ring,  # as tables name it
}


def rank_for_error(
    tensor: Array, error: float, kind: str = "tucker", *, modes: Sequence[int] | None = None, **options: Any
) -> Rank:
    """The smallest rank whose decomposition has a relative error of at most ``error``.

    kind : 'tucker' (of ``modes``, if given), 'tt' and 'ring' (or 'tr') take the ranks that the truncated SVDs choose;
        'cp' doubles the rank and then bisects, a decomposition for each
    options : of the decomposition, ``weighted`` too

    Raises TypeError, ShapeError, ValueError: as the decompositions; the kind or an option is unknown; ``modes`` for
    another kind than 'tucker'.

    >>> import numpy as np
    >>> a, b = np.arange(1.0, 5.0), np.ones(3)
    >>> rank_for_error(np.multiply.outer(np.multiply.outer(a, b), b), 1e-6, "cp")
    1
    """
    where = "rank_for_error"
    decompose, options_known = _decomposition(kind, modes, where)
    by_svd = "error" in options_known  # which iterations would only refine
    _check_options(kind, options, where, ("method", "max_iterations", "tolerance") if by_svd else ())
    bound, shape = check_bound(error, where), check_tensor(tensor, where)
    if not by_svd:
        return _smallest(lambda r: decompose(tensor, r, **options).errors[-1] <= bound, largest_cp_rank(shape))
    chosen = {"modes": modes, "max_iterations": 0}
    decomposition = decompose(tensor, error=bound, **{k: v for k, v in chosen.items() if k in options_known}, **options)
    rank: Rank = decomposition.rank
    return rank


def rank_for_output_error(
    tensor: Array,
    second_moment: Array,
    error: float,
    kind: str = "tucker",
    *,
    modes: Sequence[int] | None = None,
    channel: int = 1,
    **options: Any,
) -> Rank:
    """The smallest rank found whose output on the calibration data has a relative error of at most ``error``.

    tensor : (out, in, …) kernel    second_moment : (d, d) of the unfolded input, d = in * …, without bias column
    channel : the mode of the input channels, 1 or above, whose own second moment weights the decomposition

    Each candidate comes from the decomposition weighted by ``channel_moment(second_moment)`` (for another ``channel``
    than 1, by what that is there), so that channels the data does not use cost nothing; its output error is then
    measured exactly, with the whole second moment, and the bound of the decomposition is lowered (or the CP rank
    raised) until the output meets ``error``. The same weighting, ``weighted={channel: channel_moment(...)}``, gives
    the decomposition itself.

    Raises TypeError, ShapeError, ValueError: as the decompositions and :func:`output_error`; the channel is not a mode
    of the input.

    >>> import numpy as np
    >>> kernel = np.random.default_rng(0).standard_normal((6, 5, 1, 1))
    >>> used = np.diag([1.0, 1.0, 0.0, 0.0, 0.0])  # the data takes two of five directions
    >>> rank_for_output_error(kernel, used, 1e-6, modes=(0, 1))
    (2, 2)
    """
    where = "rank_for_output_error"
    decompose, options_known = _decomposition(kind, modes, where)
    _check_options(kind, options, where, ("weighted",))
    bound, shape = check_bound(error, where), check_tensor(tensor, where)
    (channel,) = check_modes((channel,), len(shape), where, "channel")
    if channel == 0:
        raise ShapeError(f"{where}: channel is mode 0, that of the output; expected a mode of the input, 1 or above")
    output_error(tensor, tensor, second_moment)  # the shapes and values, before any work
    weighted = {channel: mode_moment(second_moment, shape[1:], channel - 1)}
    if "error" not in options_known:

        def met(rank: int) -> bool:
            decomposition = decompose(tensor, rank, weighted=weighted, **options)
            return output_error(tensor, decomposition.reconstruct(), second_moment) <= bound

        return _smallest(met, largest_cp_rank(shape))
    allowed, options = bound, {**options, **({"modes": modes} if "modes" in options_known else {})}
    while True:
        decomposition = decompose(tensor, error=allowed, weighted=weighted, **options)
        if output_error(tensor, decomposition.reconstruct(), second_moment) <= max(bound, 1e-12) or allowed < 1e-12:
            rank: Rank = decomposition.rank
            return rank
        allowed *= 0.8 if allowed > 0.01 * bound else 0.1


def _decomposition(kind: str, modes: Sequence[int] | None, where: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The decomposition of this kind, and the names of its options."""
    decompose = _KINDS[check_choice(kind, tuple(_KINDS), "kind", where)]
    options_known = options_of(decompose)
    if modes is not None and "modes" not in options_known:
        kinds = ", ".join(repr(name) for name, function in _KINDS.items() if "modes" in options_of(function))
        raise ValueError(f"{where}: modes= is for {kinds} only, found kind {shown(kind)}; leave it out")
    return decompose, options_known


def _check_options(kind: str, options: Mapping[str, Any], where: str, unused: Sequence[str]) -> None:
    known = options_of(_KINDS[kind], ("error", "modes", *unused))
    check_options(options, known, f"{where}: {shown(kind)}")


def _smallest(met: Callable[[int], bool], largest: int) -> int:
    """The smallest rank that meets the bound, if a larger one meets it whenever a smaller one does."""
    low, high = 0, 1
    while high < largest and not met(high):
        low, high = high, min(2 * high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high
