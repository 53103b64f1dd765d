"""Growing modules: layers and merges that collect statistics, plan their growth and carry it out."""

from growarray.growing.junction import MergeGrowingModule
from growarray.growing.linear import LinearGrowingModule
from growarray.growing.merge import LinearMergeGrowingModule
from growarray.growing.module import GrowingModule
from growarray.growing.moment import TensorStatistic, TensorStatisticWithEstimationError, cross_moment
from growarray.growing.neighbour import Neighbour
from growarray.growing.rank import RankStatistics
from growarray.growing.rule import FISHER, GRADMAX, TINY, GrowthRule
from growarray.growing.stream import JoinedStream, Stream
from growarray.growing.update import added_neurons, inverse_sqrt, neuron_goal, optimal_delta, pseudo_inverse, shrink

__all__ = [
    "FISHER",
    "GRADMAX",
    "TINY",
    "GrowingModule",
    "GrowthRule",
    "JoinedStream",
    "LinearGrowingModule",
    "LinearMergeGrowingModule",
    "MergeGrowingModule",
    "Neighbour",
    "RankStatistics",
    "Stream",
    "TensorStatistic",
    "TensorStatisticWithEstimationError",
    "added_neurons",
    "cross_moment",
    "inverse_sqrt",
    "neuron_goal",
    "optimal_delta",
    "pseudo_inverse",
    "shrink",
]
