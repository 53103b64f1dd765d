"""Growing norms: the layers of :mod:`growarray.nn.norm` under the names and signatures of the original.

Unlike the original's, parameter objects and optimizer state survive growth, and a refused growth changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growarray.backend import Array
from growarray.nn.norm import BatchNorm, BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm


class GrowingBatchNorm(BatchNorm):
    """Batch normalisation that grows by channels.

    >>> layer = GrowingBatchNorm(3)
    >>> layer.grow(2)
    >>> layer.get_growth_info()
    {'num_features': 5}
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: str | None = None,
        dtype: Any = None,
        name: str = "growing_batch_norm",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype=dtype, device=device)
        self.name = name

    def grow(
        self,
        additional_features: int,
        new_weights: Array | None = None,
        new_biases: Array | None = None,
        new_running_mean: Array | None = None,
        new_running_var: Array | None = None,
    ) -> None:
        """Add channels; blocks of shape (additional_features,), default weight 1, bias 0, mean 0, variance 1.

        Raises ValueError (fewer than 1, a block of another shape, or for a missing array) before any change.
        """
        self.extend(additional_features, new_weights, new_biases, new_running_mean, new_running_var)

    def get_growth_info(self) -> dict[str, Any]:
        """The present size."""
        return {"num_features": self.num_features}


class GrowingBatchNorm1d(GrowingBatchNorm, BatchNorm1d):
    """:class:`GrowingBatchNorm` of an input (n, c) or (n, c, l).

    >>> GrowingBatchNorm1d(3).get_growth_info()
    {'num_features': 3}
    """


class GrowingBatchNorm2d(GrowingBatchNorm, BatchNorm2d):
    """:class:`GrowingBatchNorm` of an input (n, c, y, x).

    >>> GrowingBatchNorm2d(3).get_growth_info()
    {'num_features': 3}
    """


class GrowingLayerNorm(LayerNorm):
    """Layer normalisation that grows along the first axis of ``normalized_shape``.

    >>> layer = GrowingLayerNorm((2, 4))
    >>> layer.grow(1)
    >>> layer.get_growth_info()
    {'normalized_shape': [3, 4]}
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
        name: str = "growing_layer_norm",
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, dtype=dtype, device=device)
        self.name = name

    def grow(
        self, additional_first_dim: int, new_weights: Array | None = None, new_biases: Array | None = None
    ) -> None:
        """Add entries to the first axis; blocks (additional_first_dim, *rest), default weight 1, bias 0.

        Raises ValueError (fewer than 1, a block of another shape, or for a missing array) before any change.
        """
        self.extend(additional_first_dim, new_weights, new_biases)

    def get_growth_info(self) -> dict[str, Any]:
        """The present shape."""
        return {"normalized_shape": list(self.normalized_shape)}


class GrowingGroupNorm(GroupNorm):
    """Group normalisation that grows by channels.

    >>> layer = GrowingGroupNorm(1, 3)
    >>> layer.grow(3, new_num_groups=2)
    >>> layer.get_growth_info()
    {'num_channels': 6, 'num_groups': 2}
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: str | None = None,
        dtype: Any = None,
        name: str = "growing_group_norm",
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, dtype=dtype, device=device)
        self.name = name

    def grow(
        self,
        additional_channels: int,
        new_weights: Array | None = None,
        new_biases: Array | None = None,
        new_num_groups: int | None = None,
    ) -> None:
        """Add channels, cut into ``new_num_groups`` groups (default: as many as before); blocks (additional_channels,).

        Raises ValueError (fewer than 1, a block of a wrong shape, channels that the groups do not divide) before any
        change.
        """
        self.extend(additional_channels, new_weights, new_biases, new_num_groups)

    def get_growth_info(self) -> dict[str, Any]:
        """The present sizes."""
        return {"num_channels": self.num_channels, "num_groups": self.num_groups}
