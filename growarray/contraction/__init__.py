"""Contraction engine: einsum with convolution modes, planned and run, forward and backward."""

from growarray.contraction.bound import BoundPlan
from growarray.contraction.contract import contract
from growarray.contraction.cost import StepCost
from growarray.contraction.equation import Equation, parse
from growarray.contraction.export import single_steps, tree_dict
from growarray.contraction.geometry import ConvAxis, conv_axes
from growarray.contraction.kernels import Rows, row_products
from growarray.contraction.machine import Machine
from growarray.contraction.plan import Plan, plan
from growarray.contraction.search import Search
from growarray.contraction.transpose import transpose

__all__ = [
    "BoundPlan",
    "ConvAxis",
    "Equation",
    "Machine",
    "Plan",
    "Rows",
    "Search",
    "StepCost",
    "contract",
    "conv_axes",
    "parse",
    "plan",
    "row_products",
    "single_steps",
    "transpose",
    "tree_dict",
]
