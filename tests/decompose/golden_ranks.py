"""The golden kind ``tensor_ranks``: validated ranks, parameter counts, and the spread of initial factors."""

from __future__ import annotations

import math
from typing import Any

from growarray.decompose import (
    cp_parameters,
    factor_std,
    tt_parameters,
    tucker_parameters,
    validate_cp_rank,
    validate_tt_rank,
    validate_tucker_rank,
)
from tests.golden.case import Case

VALIDATE = {"CP": validate_cp_rank, "Tucker": validate_tucker_rank, "TT": validate_tt_rank}
PARAMETERS: dict[str, Any] = {"CP": cp_parameters, "Tucker": tucker_parameters, "TT": tt_parameters}


def check_tensor_ranks(case: Case) -> None:
    """Every row of the case; the originals' warnings (an int for all modes, a train of a matrix) are not repeated."""
    for row in case["out.ranks"]:
        _check_rank(row)
    for row in case["out.parameter_counts"]:
        _check_count(row)
    for row in case["out.normal_init"]:
        found = factor_std(row["factorization"].lower(), len(row["shape"]), _rank(row["rank"]), row["std"])
        assert all(abs(found - wanted) <= 1e-12 for wanted in row["std_factors"]), (row, found)
    case.ignore("out.ranks", "out.parameter_counts", "out.normal_init")  # compared above, row by row


def _rank(rank: Any) -> Any:
    return tuple(rank) if isinstance(rank, list) else rank


def _listed(rank: Any) -> Any:
    return list(rank) if isinstance(rank, tuple) else rank


def _at_least_one(rank: Any) -> Any:
    """The originals return rank 0 for small shares: 1 here."""
    return [max(r, 1) for r in rank] if isinstance(rank, list) else max(rank, 1)


def _check_rank(row: dict[str, Any]) -> None:
    try:
        found = _listed(VALIDATE[row["factorization"]](row["shape"], _rank(row["rank"]), **row["options"]))
    except ValueError:
        found = "ValueError"
    wanted = row["raised"] or _at_least_one(row["result"])
    assert found == wanted, (row, found)


def _check_count(row: list[Any]) -> None:
    kind, inputs, outputs, kernel, rank, bias, n_layers, validated, wanted = row
    layers = [n_layers] if n_layers > 1 else []
    shape = [*layers, inputs, *kernel, outputs] if kind == "TT" else [*layers, outputs, inputs, *kernel]
    count = outputs * n_layers if bias else 0
    if kind == "Dense":
        count += math.prod(shape)
    else:
        found = VALIDATE[kind](shape, _rank(rank))
        assert _listed(found) == validated, (row, found)
        count += PARAMETERS[kind](shape, found)
    assert count == wanted, (row, count)
