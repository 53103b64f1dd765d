"""Growing modules: layers and merges that collect statistics, plan their growth and carry it out."""

from growarray.growing.adapter import Adapter, adapt, load_adapters, merge_adapters
from growarray.growing.change import GrowthUpdate
from growarray.growing.conv import (
    Conv1dGrowingModule,
    Conv2dGrowingModule,
    Conv3dGrowingModule,
    FullConv2dGrowingModule,
    RestrictedConv2dGrowingModule,
)
from growarray.growing.conv_merge import Conv2dMergeGrowingModule
from growarray.growing.dependence import hsic, linear_dependence
from growarray.growing.dropout import GrowingDropout, GrowingDropout1d, GrowingDropout2d
from growarray.growing.fisher import softmax_fisher_seeds
from growarray.growing.layer import GrowingModule
from growarray.growing.linear import LinearGrowingModule, LinearMergeGrowingModule
from growarray.growing.merge import MergeGrowingModule
from growarray.growing.moment import TensorStatistic, TensorStatisticWithEstimationError, cross_moment
from growarray.growing.neighbour import Neighbour
from growarray.growing.rank import RankStatistics
from growarray.growing.rule import FISHER, GRADMAX, TINY, GrowthRule, Rule, added_neurons
from growarray.growing.stream import JoinedStream, Stream
from growarray.growing.update import inverse_sqrt, neuron_goal, optimal_delta, pseudo_inverse, shrink

__all__ = [
    "FISHER",
    "GRADMAX",
    "TINY",
    "Adapter",
    "Conv1dGrowingModule",
    "Conv2dGrowingModule",
    "Conv2dMergeGrowingModule",
    "Conv3dGrowingModule",
    "FullConv2dGrowingModule",
    "GrowingDropout",
    "GrowingDropout1d",
    "GrowingDropout2d",
    "GrowingModule",
    "GrowthRule",
    "GrowthUpdate",
    "JoinedStream",
    "LinearGrowingModule",
    "LinearMergeGrowingModule",
    "MergeGrowingModule",
    "Neighbour",
    "RankStatistics",
    "RestrictedConv2dGrowingModule",
    "Rule",
    "Stream",
    "TensorStatistic",
    "TensorStatisticWithEstimationError",
    "adapt",
    "added_neurons",
    "cross_moment",
    "hsic",
    "inverse_sqrt",
    "linear_dependence",
    "load_adapters",
    "merge_adapters",
    "neuron_goal",
    "optimal_delta",
    "pseudo_inverse",
    "shrink",
    "softmax_fisher_seeds",
]
