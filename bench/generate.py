"""Random equations with convolution modes, and the hundred that are kept: ``python -m bench.generate``.

A feature map meets a network of factors: a chain, a binary tree, a ring, or a star, in which all share one rank. Each
factor has bonds to others, and may have a leg of its own: a convolution mode, a channel of the input or of the output.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

from growarray.cli.bench.equation import equation_from
from growarray.contraction import Search
from growarray.errors import PlanError

__all__ = ["FOLDER", "KINDS", "fixed", "random_equation"]

FOLDER = Path(__file__).parent / "instances"
KINDS = ("chain", "tree", "ring", "star")
_FACTORS = (3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7, 7, 8, 9, 10, 10, 11, 12, 13, 14, 16, 17, 19, 21, 23)  # of 25 a kind
_AXES = "zyx"
_LEGS = 8  # channels of input and output together: other factors have bonds alone
_LARGEST = 1 << 24  # elements of the feature map and of the result


def random_equation(kind: str, factors: int, rng: random.Random) -> dict[str, Any]:
    """An equation of so many factors and a feature map, as a file of ``growarray bench`` has it."""
    while True:
        found = _drawn(kind, factors, rng)
        try:
            problem = equation_from(found).problem
        except (PlanError, ValueError):  # too large, or a kernel that does not fit
            continue
        if max(problem.elements(1), problem.elements(problem.everything)) <= _LARGEST:
            return found


def _drawn(kind: str, factors: int, rng: random.Random) -> dict[str, Any]:
    bonds: list[tuple[int, ...]] = {
        "chain": [(i, i + 1) for i in range(factors - 1)],
        "tree": [((i - 1) // 2, i) for i in range(1, factors)],
        "ring": [(i, (i + 1) % factors) for i in range(factors)],
        "star": [tuple(range(factors))],
    }[kind]
    axes = _AXES[-rng.randint(1, min(3, max(1, factors - 2))) :]
    places = list(range(factors))
    rng.shuffle(places)
    channels = places[len(axes) :][:_LEGS]
    wide = 6 if factors > 8 else 24
    size = {f"r{k}": rng.randint(2, 4 * wide) for k in range(len(bonds))} | {"n": rng.choice([1, 2, 4, 8])}
    term = [[f"r{k}" for k, bond in enumerate(bonds) if i in bond] for i in range(factors)]
    image, out = ["n"], ["n"]
    for place, side in zip(channels, itertools.cycle("co"), strict=False):
        name = f"{side}{place}"
        size[name] = rng.randint(2, wide)
        term[place].append(name)
        (image if side == "c" else out).append(name)
    taps = {}
    for axis, place in zip(axes, places, strict=False):
        size[axis], taps[axis] = rng.randint(8, 56 if len(axes) < 3 else 16), rng.choice([1, 3, 3, 5, 7])
        term[place].append(axis)
    text = ", ".join(" ".join(modes) for modes in [[*image, *axes], *term])
    shapes = [[size[m] for m in [*image, *axes]], *([taps.get(m, size[m]) for m in modes] for modes in term)]
    return {
        "equation": f"{text} -> {' '.join([*out, *axes])} | {', '.join(axes)}",
        "shapes": shapes,
        "stride": [rng.choice([1, 1, 2]) for _ in axes],
        "padding": [taps[axis] // 2 for axis in axes],
    }


def fixed() -> list[dict[str, Any]]:
    """The hundred, without their best known cost."""
    found = []
    for kind in KINDS:
        for number, factors in enumerate(_FACTORS):
            rng = random.Random(f"{kind} {number}")
            found.append({"name": f"{kind}-{factors + 1:02}-{number:02}", **random_equation(kind, factors, rng)})
    return found


def main() -> None:
    """Write every instance that is not there, and lower what is known where a longer search finds less."""
    FOLDER.mkdir(exist_ok=True)
    for instance in fixed():
        path = FOLDER / f"{instance['name']}.json"
        known = json.loads(path.read_text())["best"]["flops"] if path.exists() else math.inf
        made = equation_from(instance).plan(Search(trials=24, seed=1), minimize="flops")
        instance["best"] = {"flops": min(known, made.flops)}
        path.write_text(json.dumps(instance) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bench.generate", description=main.__doc__).parse_args()
    main()
