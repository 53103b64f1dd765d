"""Names of the command line and the rules of growth that they stand for."""

from __future__ import annotations

from growarray.growing import FISHER, GRADMAX, TINY, GrowthRule

__all__ = ["RULES"]

RULES: dict[str, GrowthRule] = {"tiny": TINY, "gradmax": GRADMAX, "fisher": FISHER}
