"""Equations: what is read, what it means, and messages that point at the place."""

from __future__ import annotations

import re

import pytest

from growarray.contraction.equation import Equation, parse
from growarray.errors import PlanError


@pytest.mark.parametrize(
    ("text", "terms", "output", "convolved"),
    [
        ("ij,jk->ik", ("ij", "jk"), "ik", ""),
        ("  ij , jk ->ik ", ("ij", "jk"), "ik", ""),
        ("ba", ("ba",), "ab", ""),
        ("bA,Ac", ("bA", "Ac"), "bc", ""),
        ("zB,aB", ("zB", "aB"), "az", ""),
        ("ii", ("ii",), "", ""),
        ("i,,j->", ("i", "", "j"), "", ""),
        ("->", ("",), "", ""),
        ("", ("",), "", ""),
        ("nx,ox->nox|x", ("nx", "ox"), "nox", "x"),
        ("nyx,yx->nyx|y,x", ("nyx", "yx"), "nyx", "yx"),
        ("nyx,yx->nyx|yx", ("nyx", "yx"), "nyx", "yx"),
        ("ij->ij|", ("ij",), "ij", ""),
        ("iü,ü京->i京", ("iü", "ü京"), "i京", ""),
        ("Ǵb,bÀ", ("Ǵb", "bÀ"), "ÀǴ", ""),
        ("n×,×->n×|×", ("n×", "×"), "n×", "×"),  # the 76th symbol of opt_einsum is no letter
    ],
)
def test_letters(text, terms, output, convolved):
    assert parse(text) == Equation(tuple(tuple(t) for t in terms), tuple(output), tuple(convolved))


@pytest.mark.parametrize(
    ("text", "terms", "output", "convolved"),
    [
        ("batch in, out in -> batch out", [["batch", "in"], ["out", "in"]], ["batch", "out"], []),
        ("ab cd, cd", [["ab", "cd"], ["cd"]], ["ab"], []),
        ("i, j -> i j", [["i"], ["j"]], ["i", "j"], []),
        ("n_1 größe, größe -> n_1", [["n_1", "größe"], ["größe"]], ["n_1"], []),
        ("... c x, o c x -> ... o x | x", [["...", "c", "x"], ["o", "c", "x"]], ["...", "o", "x"], ["x"]),
        ("a...b->...", [["a", "...", "b"]], ["..."], []),
        ("...b, b c", [["...", "b"], ["b", "c"]], ["...", "c"], []),
        ("n row, row -> n row|row", [["n", "row"], ["row"]], ["n", "row"], ["row"]),
    ],
)
def test_names_and_ellipsis(text, terms, output, convolved):
    assert parse(text) == Equation(tuple(map(tuple, terms)), tuple(output), tuple(convolved))


@pytest.mark.parametrize(
    "text", ["ij,jk->ik", "n c y x, o c y x -> n o y x | y, x", "...ii->...i", "i,->", ",", "a×,×÷->a÷"]
)
def test_its_text_is_read_as_the_same_equation(text):
    assert parse(str(parse(text))) == parse(text)
    assert str(parse(str(parse(text)))) == str(parse(text))


def test_an_equation_is_read_once():
    assert parse("ij,jk->ik") is parse("ij,jk->ik")


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("ij,j;->i", 5, "unexpected ';', expected a name, ',', '->' or '|'"),
        ("ij,jk=>ik", 6, "unexpected '='"),
        ("ij..->ij", 3, "unexpected '.'"),
        ("i1,1j->ij", 2, "unexpected '1'"),
        ("in_1->i", 3, "unexpected '_'; separate named modes by blanks"),
        ("i j, 2 -> i", 6, "unexpected '2'"),
        ("ij->ik", 6, "output mode 'k' is not in any operand"),
        ("batch in -> batch out", 19, "output mode 'out' is not in any operand"),
        ("ij->i...", 6, "output mode '...' is not in any operand"),
        ("i -> i i", 6, "output mode 'i' occurs twice; take a diagonal afterwards"),
        ("i->j->k", 5, "a second '->'"),
        ("nx,x->nx|x|x", 11, "a second '|'"),
        ("... i ... -> i", 7, "a second '...' in one term"),
        ("nx,x->nx|x,x", 10, "convolution mode 'x' is named twice"),
        ("... x, ... x -> ... x | ...", 25, "'...' cannot be a convolution mode; name the modes"),
        ("nx,y->nxy|x", 11, "convolution mode 'x' is in 1 operands, expected once in exactly two"),
        ("nx,x,x->nx|x", 12, "is in 3 operands, expected once in exactly two"),
        ("nxx,x->nx|x", 11, "expected once in exactly two"),
        ("nx,x->n|x", 9, "convolution mode 'x' must be in the output; sum over it afterwards"),
        ("n x, x -> n x | z", 17, "convolution mode 'z' is in 0 operands"),
        ("n x, x -> n x | x -> n", 19, "a second '->'"),
        ("n x, x | x -> n x", 12, "unexpected '-'"),
    ],
)
def test_what_does_not_parse_is_pointed_at(text, place, message):
    with pytest.raises(PlanError, match=re.escape(message)) as raised:
        parse(text)
    first, line, pointer = str(raised.value).split("\n")
    assert first.startswith(f"equation, character {place}: ")
    assert line == f"  {text}"
    assert pointer == " " * (place + 1) + "^"


@pytest.mark.parametrize("value", [None, 3, b"ij->ij", ("ij",)], ids=str)
def test_only_text_is_an_equation(value):
    with pytest.raises(PlanError, match=f"expected a string such as 'ij,jk->ik', found {type(value).__name__}"):
        parse(value)
