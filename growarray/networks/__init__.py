"""Networks that grow, and the loop that trains them."""

from growarray.compression import Compression, Point, compress  # they were documented under this name first
from growarray.files.paths import write_atomically
from growarray.networks.block import GrowingResidualBlock, GrowingResidualMLP
from growarray.networks.choice import bic
from growarray.networks.data import Task, accuracy, batches, f1, task_named
from growarray.networks.graph import Expansion, ExpansionType, GraphStatistics, GrowingDAG
from growarray.networks.growth import Growth
from growarray.networks.history import History
from growarray.networks.images import GrowingVGG
from growarray.networks.judgement import Best, Judgement, Snapshot
from growarray.networks.line_search import LineSearch, line_search
from growarray.networks.loader import Batches
from growarray.networks.mixer import GrowingMLPMixer
from growarray.networks.mlp import GrowingMLP
from growarray.networks.network import GrowingNetwork
from growarray.networks.planner import default_budget
from growarray.networks.prune import Pruning, prune
from growarray.networks.resnet import Conv2dGrowingBlock, GrowingBlock, GrowingResNet, LinearGrowingBlock
from growarray.networks.settings import GrowthSettings
from growarray.networks.transformer import GrowingAttention, GrowingTransformerBlock

__all__ = [
    "Batches",
    "Best",
    "Compression",
    "Conv2dGrowingBlock",
    "Expansion",
    "ExpansionType",
    "GraphStatistics",
    "GrowingAttention",
    "GrowingBlock",
    "GrowingDAG",
    "GrowingMLP",
    "GrowingMLPMixer",
    "GrowingNetwork",
    "GrowingResNet",
    "GrowingResidualBlock",
    "GrowingResidualMLP",
    "GrowingTransformerBlock",
    "GrowingVGG",
    "Growth",
    "GrowthSettings",
    "History",
    "Judgement",
    "LineSearch",
    "LinearGrowingBlock",
    "Point",
    "Pruning",
    "Snapshot",
    "Task",
    "accuracy",
    "batches",
    "bic",
    "compress",
    "default_budget",
    "f1",
    "line_search",
    "prune",
    "task_named",
    "write_atomically",
]
