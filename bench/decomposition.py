"""Decompositions beside TensorLy's ``parafac``, ``tucker`` and ``tensor_train``: time and error at equal ranks.

Float32 kernels of a ResNet's shapes, at ranks that keep a tenth and a quarter of the parameters; each library with its
own defaults, TensorLy on NumPy, so that both use one BLAS. Errors are computed here, in float64, from the factors that
come back. Two kinds of kernels:

random : Gaussian entries, nothing to be found
decaying : singular values that fall along every mode, as those of trained kernels do, and a tenth of noise

A call of TensorLy's that takes longer than CAP is ended: its row then says so, and counts the time that it had, but no
error. A call that raises counts for nothing, and its row says what it raised; factors that are not finite have a time,
but no error.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.timing import clock, compare, geometric_mean, measure, show, table

__all__ = ["report", "run"]

CAP, QUICK_CAP = 120.0, 20.0  # seconds
LONG = 3.0  # seconds; a call of TensorLy's that takes longer is timed once
SHAPES = ((64, 64, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (512, 256, 3, 3), (512, 512, 3, 3), (256, 64, 1, 1))
QUICK_SHAPES = (SHAPES[0], SHAPES[1], SHAPES[5])
FORMS = ("cp", "tucker", "tt")
SUBSCRIPTS = {"cp": "r,ar,br,cr,dr->abcd", "tucker": "stuv,as,bt,cu,dv->abcd", "tt": "ras,sbt,tcu,udv->abcd"}
GAP, SLACK = 2.0, 1.001  # the goals: times as fast in the geometric mean, and error at most that of TensorLy times this
SEEDS_SHAPE, SEEDS_SHARE = (16, 16, 3, 3), 0.5  # of the kernels that CP must not diverge on
COLUMNS = {
    "name": "kernel",
    "rank": "rank",
    "ours": "ours ms:.1f",
    "theirs": "TensorLy ms:.1f",
    "ratio": "ratio:.2f",
    "our_error": "error, ours:.5f",
    "their_error": "TensorLy:.5f",
    "error_ratio": "ours / TensorLy:.5f",
    "note": "note",
    "others": "others:.0%",
}

Parts = list[np.ndarray]


class _Ended(Exception):
    """A call took longer than it may."""


@dataclass(frozen=True)
class Case:
    """One kernel (out, in, height, width), a format, and the share of the parameters that its rank keeps."""

    form: str
    shape: tuple[int, ...]
    kind: str
    share: float
    init: str = "svd"  # of TensorLy's parafac; ours starts by its own default

    @property
    def name(self) -> str:
        """Format, kind, sizes, share."""
        start = ", random start" if self.init == "random" else ""
        return f"{self.form} {self.kind} {' x '.join(map(str, self.shape))}, {self.share:g}{start}"


def _cases(quick: bool) -> list[Case]:
    cases = [
        Case(form, shape, kind, share)
        for form in FORMS
        for shape in (QUICK_SHAPES if quick else SHAPES)
        for kind in ("random", "decaying")
        for share in (0.1, 0.25)
    ]
    starts = [Case("cp", SHAPES[0], kind, share, "random") for kind in ("random", "decaying") for share in (0.1, 0.25)]
    return cases if quick else cases + starts


def _kernel(case: Case) -> np.ndarray:
    """The kernel in the order of modes that the format decomposes: a tensor train has the output channels last."""
    rng = np.random.default_rng(sum(case.shape))
    kernel = rng.standard_normal(case.shape)
    if case.kind == "decaying":
        noise = rng.standard_normal(case.shape)
        for axis, n in enumerate(case.shape):
            basis = np.linalg.qr(rng.standard_normal((n, n)))[0] * np.arange(1, n + 1) ** (-0.7 if n > 3 else -1.0)
            kernel = np.moveaxis(np.tensordot(basis, kernel, (1, axis)), 0, axis)
        kernel += 0.1 * np.linalg.norm(kernel) / np.linalg.norm(noise) * noise
    kernel = kernel.astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(kernel, 0, -1)) if case.form == "tt" else kernel


def _rank(case: Case, shape: tuple[int, ...]) -> Any:
    from growarray.decompose import validate_cp_rank, validate_tt_rank, validate_tucker_rank

    if case.form == "cp":
        return validate_cp_rank(shape, case.share)
    if case.form == "tucker":
        return validate_tucker_rank(shape, case.share)
    return validate_tt_rank(shape, case.share, allow_overparametrization=False)


def _ours(case: Case, kernel: np.ndarray, rank: Any) -> Parts:
    from growarray.decompose import cp, tensor_train, tucker

    if case.form == "cp":
        found = cp(kernel, rank)
        return [found.weights, *found.factors]
    if case.form == "tucker":
        factors = tucker(kernel, rank)
        return [factors.core, *factors.factors]
    return list(tensor_train(kernel, rank).cores)


def _theirs(case: Case, kernel: np.ndarray, rank: Any) -> Parts:
    from tensorly import decomposition

    if case.form == "cp":
        weights, factors = decomposition.parafac(kernel, rank, init=case.init, random_state=0)
        return [weights, *factors]
    if case.form == "tucker":
        core, factors = decomposition.tucker(kernel, list(rank), init="svd")
        return [core, *factors]
    return list(decomposition.tensor_train(kernel, list(rank)))


def _error(case: Case, kernel: np.ndarray, parts: Parts) -> float:
    """Relative error of the tensor that the factors stand for."""
    exact = kernel.astype(np.float64)
    dense = np.einsum(SUBSCRIPTS[case.form], *(p.astype(np.float64) for p in parts), optimize=True)
    return float(np.linalg.norm(dense - exact) / np.linalg.norm(exact))


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise :class:`_Ended` within when the wall clock has gone on for so long."""

    def end(*_: object) -> None:
        raise _Ended(f"ended after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _row(case: Case, cap: float) -> dict[str, Any]:
    kernel = _kernel(case)
    rank = _rank(case, kernel.shape)

    def ours() -> Parts:
        return _ours(case, kernel, rank)

    row: dict[str, Any] = {"name": case.name, "form": case.form, "rank": " ".join(map(str, np.atleast_1d(rank)))}
    row |= {"our_error": _error(case, kernel, ours()), "note": ""}
    found, start = None, clock()
    try:
        with _at_most(cap):
            found = _theirs(case, kernel, rank)
    except (_Ended, ArithmeticError, ValueError) as error:  # numpy's LinAlgError is a ValueError
        row["note"] = f"TensorLy: {error}"
    seconds = clock() - start
    ended = row["note"].startswith("TensorLy: ended")
    if found is None or seconds > LONG:
        row["ours"] = 1e3 * measure(ours, repeat=3, warmup=1)
        if found is not None or ended:
            row |= {"theirs": 1e3 * seconds, "ratio": 1e3 * seconds / row["ours"]}
    else:
        times = compare(ours, lambda: _theirs(case, kernel, rank), repeat=9, warmup=1, budget=3.0)
        row |= {"ours": 1e3 * times.ours, "theirs": 1e3 * times.theirs, "ratio": times.ratio, "others": times.others}
    if found is not None:
        error = _error(case, kernel, found)
        row |= {"their_error": error, "error_ratio": row["our_error"] / error} if np.isfinite(error) else {}
        row["note"] = row["note"] if np.isfinite(error) else "TensorLy: not finite"
    return row


def _divergence(seeds: int) -> dict[str, Any]:
    """CP of random kernels on both sides: how many diverge (an error of 1, or numbers that are not finite).

    Of the others: mean and largest error, and the largest sum of component norms over the kernel's norm.
    """
    result: dict[str, Any] = {"seeds": seeds}
    for side, decompose in (("ours", _ours), ("theirs", _theirs)):
        errors, ratios = [], []
        for seed in range(seeds):
            kernel = np.random.default_rng(seed).standard_normal(SEEDS_SHAPE, dtype=np.float32)
            case = Case("cp", SEEDS_SHAPE, "random", SEEDS_SHARE)
            try:
                parts = [p.astype(np.float64) for p in decompose(case, kernel, _rank(case, SEEDS_SHAPE))]
            except np.linalg.LinAlgError:
                parts = [np.full(1, np.nan)] * 5
            norms = np.prod([np.linalg.norm(f, axis=0) for f in parts[1:]], axis=0) * np.abs(parts[0])
            errors.append(_error(case, kernel, parts) if np.isfinite(norms).all() else np.inf)
            ratios.append(float(np.sum(norms)) / float(np.linalg.norm(kernel)))
        kept = [i for i, error in enumerate(errors) if error < 1.0]
        result[side] = {
            "diverged": seeds - len(kept),
            "mean_error": float(np.mean([errors[i] for i in kept])),
            "worst_error": max((errors[i] for i in kept), default=float("nan")),
            "norm_ratio": max((ratios[i] for i in kept), default=float("nan")),
        }
    return result


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and the worst error, of each format and of all."""
    result = {}
    for form in (*FORMS, "all"):
        chosen = [row for row in rows if form in (row["form"], "all")]
        result[form] = {
            "ratio": geometric_mean(row["ratio"] for row in chosen if "ratio" in row),
            "worst": max((row["error_ratio"] for row in chosen if "error_ratio" in row), default=float("nan")),
            "above": sum(row.get("error_ratio", 0.0) > SLACK for row in chosen),
            "cases": len(chosen),
        }
    return result


def run(quick: bool = False, progress: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Every case, the means and worst errors by format, and the seeds on which CP diverges."""
    import tensorly

    warnings.filterwarnings("ignore")
    tensorly.set_backend("numpy")
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"rows": rows}
    for case in _cases(quick):
        rows.append(_row(case, QUICK_CAP if quick else CAP))
        row = rows[-1]
        show(f"{row['name']}: {row.get('ratio', float('nan')):.2f} {row.get('error_ratio', float('nan')):.5f}")
        result["summary"] = _summary(rows)
        progress(result)
    result["divergence"] = _divergence(20 if quick else 100)
    progress(result)
    return result


def report(result: Mapping[str, Any]) -> str:
    """The means, the seeds, and the table."""
    lines = [
        f"{form}, {s['cases']} cases: TensorLy takes {s['ratio']:.2f} times as long in the geometric mean (goal "
        f"{GAP:g}); our error over TensorLy's at worst {s['worst']:.5f}, above {SLACK:g} in {s['above']}."
        for form, s in result["summary"].items()
    ]
    found = result["divergence"]
    lines.append(
        f"CP of {found['seeds']} random kernels {' x '.join(map(str, SEEDS_SHAPE))}, share {SEEDS_SHARE:g}: "
        + "; ".join(
            f"{name} diverges on {found[side]['diverged']}, mean error {found[side]['mean_error']:.5f}, worst "
            f"{found[side]['worst_error']:.5f}, sum of component norms at most {found[side]['norm_ratio']:.1f} times "
            "the kernel's"
            for name, side in (("growarray", "ours"), ("TensorLy", "theirs"))
        )
        + "."
    )
    return "\n".join((*(f"- {line}" for line in lines), "", table(result["rows"], COLUMNS)))
