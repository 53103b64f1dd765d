"""Statistics of growth from many parts of the data, on as many processes or machines as there are."""

from growarray.distributed.collect import collect
from growarray.distributed.shards import from_dask
from growarray.distributed.value import GrowthStatistics, statistics_of

__all__ = ["GrowthStatistics", "collect", "from_dask", "statistics_of"]
