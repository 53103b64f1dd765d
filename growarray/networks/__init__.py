"""Networks that grow, and the loop that trains them."""

from growarray.networks.block import GrowingResidualBlock, GrowingResidualMLP
from growarray.networks.compress import compress
from growarray.networks.compression import Compression, Point
from growarray.networks.data import Task, accuracy, batches, task_named
from growarray.networks.growth import Growth
from growarray.networks.history import History, write_atomically
from growarray.networks.line_search import LineSearch, line_search
from growarray.networks.mlp import GrowingMLP
from growarray.networks.network import GrowingNetwork
from growarray.networks.settings import GrowthSettings

__all__ = [
    "Compression",
    "GrowingMLP",
    "GrowingNetwork",
    "GrowingResidualBlock",
    "GrowingResidualMLP",
    "Growth",
    "GrowthSettings",
    "History",
    "LineSearch",
    "Point",
    "Task",
    "accuracy",
    "batches",
    "compress",
    "line_search",
    "task_named",
    "write_atomically",
]
