"""Plain equations that every optimizer and every library must get right, and arrays for them.

One list, kept for ever: an equation that once failed is added and never removed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from growarray.contraction.equation import ELLIPSIS, parse

__all__ = ["EQUATIONS", "Plain", "arrays_for", "expected", "letters"]


class Plain(NamedTuple):
    """An equation without convolution modes, and the shapes of its operands."""

    equation: str
    shapes: tuple[tuple[int, ...], ...]


EQUATIONS = (
    # one operand: copies, transposes, sums, diagonals, traces
    Plain("i->i", ((4,),)),
    Plain("->", ((),)),
    Plain("ij->ji", ((2, 3),)),
    Plain("ijk->kij", ((2, 3, 4),)),
    Plain("ij->", ((2, 3),)),
    Plain("ij->i", ((2, 3),)),
    Plain("ijk->j", ((2, 3, 4),)),
    Plain("ii->i", ((3, 3),)),
    Plain("ii->", ((3, 3),)),
    Plain("ii", ((3, 3),)),
    Plain("ba", ((2, 3),)),
    Plain("iji->j", ((3, 2, 3),)),
    Plain("iijj->ij", ((3, 3, 2, 2),)),
    Plain("ijij->ji", ((3, 2, 3, 2),)),
    Plain("iiii->i", ((2, 2, 2, 2),)),
    Plain("...ij->...ji", ((2, 3, 4),)),
    Plain("...->...", ((2, 3),)),
    Plain("i...->...i", ((2, 3, 4),)),
    Plain("i...->...", ((2, 3, 4),)),
    Plain("...ii->...i", ((2, 3, 3),)),
    # two operands: products of vectors and matrices, with and without batch modes
    Plain("i,i->", ((5,), (5,))),
    Plain("i,i->i", ((5,), (5,))),
    Plain("i,j->ij", ((2,), (3,))),
    Plain("i,j->ji", ((2,), (3,))),
    Plain("i,j->", ((2,), (3,))),
    Plain(",->", ((), ())),
    Plain(",ij->ji", ((), (2, 3))),
    Plain("ij,->i", ((2, 3), ())),
    Plain("ij,jk->ik", ((2, 3), (3, 4))),
    Plain("ij,jk->ki", ((2, 3), (3, 4))),
    Plain("ij,kj->ik", ((2, 3), (4, 3))),
    Plain("ji,jk", ((3, 2), (3, 4))),
    Plain("ij,ij->", ((2, 3), (2, 3))),
    Plain("ij,ji->", ((2, 3), (3, 2))),
    Plain("ij,ij->ij", ((2, 3), (2, 3))),
    Plain("ij,j->i", ((2, 3), (3,))),
    Plain("ij,i->ij", ((2, 3), (2,))),
    Plain("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
    Plain("bij,bjk->ikb", ((2, 3, 4), (2, 4, 5))),
    Plain("abij,abjk->baik", ((2, 3, 2, 4), (2, 3, 4, 2))),
    Plain("ijkl,klm->mij", ((2, 3, 2, 4), (2, 4, 3))),
    Plain("ii,ij->j", ((3, 3), (3, 2))),
    Plain("iij,jkk->ik", ((2, 2, 3), (3, 4, 4))),
    Plain("ij,kl->", ((2, 3), (4, 2))),
    Plain("ijk,jl->il", ((2, 3, 4), (3, 2))),
    Plain("ij,jkl->ki", ((2, 3), (3, 4, 2))),
    # ellipsis: leading modes, broadcast where they are of size one or missing
    Plain("...ij,...jk->...ik", ((2, 3, 4), (2, 4, 5))),
    Plain("...ij,jk->...ik", ((2, 2, 3, 4), (4, 5))),
    Plain("...ij,...jk->...ik", ((2, 1, 3, 4), (3, 4, 2))),
    Plain("...ij,...jk->...ik", ((1, 3, 4), (2, 4, 2))),
    Plain("...,...->...", ((2, 1), (3,))),
    Plain("i...,i...->...", ((3, 2, 1), (3, 4))),
    Plain("i...,...j->j...i", ((3, 2), (2, 4))),
    Plain("...i,...i", ((2, 1, 3), (4, 3))),
    Plain("ab...,bc...->ac...", ((2, 3, 1), (3, 4, 1))),
    # sizes one and zero
    Plain("ij,jk->ik", ((1, 1), (1, 1))),
    Plain("ij,jk->ik", ((2, 1), (1, 3))),
    Plain("ij,jk->ik", ((2, 0), (0, 3))),
    Plain("ij,jk->ik", ((0, 3), (3, 2))),
    Plain("bij,bjk->bik", ((0, 2, 3), (0, 3, 2))),
    Plain("ii,i->", ((0, 0), (0,))),
    Plain("i,j->ij", ((0,), (3,))),
    # three operands and more: chains, hyperedges, factorizations, networks
    Plain("ij,jk,kl->il", ((2, 3), (3, 4), (4, 2))),
    Plain("ij,jk,kl->li", ((2, 3), (3, 4), (4, 2))),
    Plain("ir,jr,kr->ijk", ((2, 3), (4, 3), (2, 3))),
    Plain("r,ir,jr,kr->ijk", ((3,), (2, 3), (4, 3), (2, 3))),
    Plain("rst,ir,js,kt->kji", ((2, 3, 2), (3, 2), (2, 3), (4, 2))),
    Plain("ia,ajb,bkc,cl->ijkl", ((2, 3), (3, 2, 2), (2, 3, 2), (2, 2))),
    Plain("i,i,i->i", ((4,), (4,), (4,))),
    Plain("i,i,i,i->", ((4,), (4,), (4,), (4,))),
    Plain("ij,ik,il->jkl", ((3, 2), (3, 2), (3, 4))),
    Plain("ij,jk,ki->", ((2, 3), (3, 4), (4, 2))),
    Plain("i,j,k->kji", ((2,), (3,), (2,))),
    Plain("a,ab,b->", ((3,), (3, 4), (4,))),
    Plain("bi,ij,bj->b", ((2, 3), (3, 4), (2, 4))),
    Plain("ea,fb,abcd,gc,hd->efgh", ((2, 2), (2, 2), (2, 2, 2, 2), (2, 2), (2, 2))),
    Plain("...i,ij,...j->...", ((2, 3), (3, 4), (2, 4))),
    Plain("iij,jk,kll->il", ((2, 2, 3), (3, 2), (2, 2, 2))),
    Plain("ab,bc,cd,de,ef->af", ((2, 2), (2, 3), (3, 2), (2, 2), (2, 3))),
    Plain("ab,bc,cd,de,ef,fg,gh,hi,ij->aj", ((2, 3), (3, 2)) * 4 + ((2, 3),)),
    Plain("xr,ar,br,cr,dr,er,fr,gr,hr,r->xh", ((2, 3),) + ((2, 3),) * 8 + ((3,),)),
    Plain("a,a,a,a,a,a,a,a,a,a->a", ((3,),) * 10),
    # named modes
    Plain("batch in, out in -> batch out", ((4, 3), (2, 3))),
    Plain("batch in, rank in, out rank -> out batch", ((4, 3), (2, 3), (5, 2))),
    Plain("row row -> row", ((3, 3),)),
    Plain("... in, out in -> ... out", ((2, 2, 3), (4, 3))),
    Plain("b_1 i, b_1 j -> i j", ((4, 2), (4, 3))),
    Plain("height width, width channel", ((2, 3), (3, 2))),
    Plain("x1 x2, x2 x3, x3 x4 -> x4 x1", ((2, 3), (3, 2), (2, 4))),
)


def letters(equation: str) -> str:
    """The same equation as :func:`numpy.einsum` reads it: a letter for each name."""
    parsed = parse(equation)
    names = sorted({mode for term in parsed.terms for mode in term} - {ELLIPSIS})
    letter = {name: "abcdefghijklmnopqrstuvwxyz"[k] for k, name in enumerate(names)} | {ELLIPSIS: ELLIPSIS}
    left = ",".join("".join(letter[mode] for mode in term) for term in parsed.terms)
    return f"{left}->{''.join(letter[mode] for mode in parsed.output)}"


def arrays_for(case: Plain, seed: int = 0) -> list[np.ndarray]:
    """Read-only float64 operands."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in case.shapes]
    for array in arrays:
        array.setflags(write=False)
    return arrays


def expected(case: Plain, arrays: list[np.ndarray]) -> np.ndarray:
    """What :func:`numpy.einsum` gives, without a path of its own."""
    plain = case.equation if " " not in case.equation else letters(case.equation)
    return np.asarray(np.einsum(plain, *arrays, optimize=False))


def identity(case: Plain) -> str:
    """A readable name for a parametrized test."""
    return f"{case.equation.replace(' ', '_')} {'x'.join(str(s).replace(' ', '') for s in case.shapes)}"[:70]


each_equation = pytest.mark.parametrize("case", EQUATIONS, ids=identity)
"""Parametrizes a test over the list."""
