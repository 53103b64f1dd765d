"""GrowthRule: how updates and new neurons are computed, as one value with named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.contraction.checks import is_whole
from growarray.errors import shown

__all__ = ["FISHER", "GRADMAX", "TINY", "GrowthRule", "rule_of"]


@dataclass(frozen=True)
class GrowthRule:
    """How updates and new neurons are computed; ``dataclasses.replace(TINY, max_new=8)`` makes a variant.

    compute_delta : also update the weights that exist
    use_covariance : whiten the incoming side by S_prev, else the identity
    use_projection : take off what the update of existing weights already does, else N = -M_prev
    use_fisher : whiten the outgoing side by E;  fisher_shrinkage : ridge on E, see :func:`shrink`
    project_with_fisher : take off the preconditioned delta, as the original does; its scale is not that of M_prev, so
        the neurons may raise the loss. False takes off the plain delta, which is what the whitened problem asks for
    alpha_zero, omega_zero : start the incoming or outgoing weights at zero
    ignore_singular_values : unit singular values in the weights; the improvement is then linear in them
    max_new : most neurons to add, None for all that pass ``statistical_threshold``
    numerical_threshold : eigenvalues of S_prev and E at or below it count as zero
    statistical_threshold : singular values under it are dropped, save the largest
    """

    compute_delta: bool = True
    use_covariance: bool = True
    use_projection: bool = True
    use_fisher: bool = False
    fisher_shrinkage: float = 0.0
    project_with_fisher: bool = True
    alpha_zero: bool = False
    omega_zero: bool = False
    ignore_singular_values: bool = False
    max_new: int | None = None
    numerical_threshold: float = 1e-6
    statistical_threshold: float = 1e-3

    def __post_init__(self) -> None:
        if self.max_new is not None and not is_whole(self.max_new):
            raise ValueError(f"GrowthRule: max_new must be None or a whole number, found {shown(self.max_new)}")
        if self.max_new is not None and self.max_new < 0:
            raise ValueError(f"GrowthRule: max_new must be None or at least 0, found {self.max_new}")
        for name, value in vars(self).items():
            if isinstance(GrowthRule.__dataclass_fields__[name].default, bool) and not isinstance(
                value, bool | np.bool_
            ):
                raise TypeError(f"GrowthRule: {name} must be True or False, found {shown(value)}")
        for name in ("numerical_threshold", "statistical_threshold"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"GrowthRule: {name} must be finite and at least 0, found {getattr(self, name)}")
        if not 0.0 <= self.fisher_shrinkage <= 1.0:
            raise ValueError(f"GrowthRule: fisher_shrinkage must lie in [0, 1], found {self.fisher_shrinkage}")


def rule_of(rule: GrowthRule, options: dict[str, Any]) -> GrowthRule:
    """``rule`` with single options replaced, under their own names or the original's ``maximum_added_neurons``."""
    if not isinstance(rule, GrowthRule):
        raise TypeError(f"rule: expected a GrowthRule such as TINY, found {shown(rule)}; pass single options by name")
    options = {"max_new" if key == "maximum_added_neurons" else key: value for key, value in options.items()}
    values = {**vars(rule), **options}
    unknown = set(options) - set(vars(rule))
    if unknown:
        hint = "; updates are always float64" if "dtype" in unknown else ""
        raise TypeError(f"unknown growth options {sorted(unknown)}; known: {sorted(vars(rule))}{hint}")
    return GrowthRule(**values)


TINY = GrowthRule()
"""Verbockhaven et al. 2024: covariance and projection on, nothing zeroed."""

GRADMAX = GrowthRule(
    compute_delta=False, use_covariance=False, use_projection=False, alpha_zero=True, ignore_singular_values=True
)
"""Evci et al. 2022: identity for S, N = -M_prev, incoming weights zero, singular values ignored."""

FISHER = GrowthRule(use_fisher=True, project_with_fisher=False)
"""TINY preconditioned by the empirical Fisher matrix of the output side, projected by the plain delta."""
