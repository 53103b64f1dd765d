"""The exact Fisher matrix of a softmax, as gradients at the logits that are sent back one after another."""

from __future__ import annotations

from collections.abc import Iterator

from growarray.backend import Array, namespace
from growarray.errors import ShapeError


def softmax_fisher_seeds(logits: Array) -> Iterator[Array]:
    """Gradients ``g_k`` (n, c) at the logits, c - 1 of them, with ``sum_k g_k g_k^T = diag(p) - p p^T``, p the softmax.

    logits : (n, c). With q the roots of p, and j the last class,
    ``g_k = q_k e_k - q_k (p + q_j e_j) / (1 + q_j)`` for every other class k: the columns of ``diag(q) H`` for the
    reflection H that takes e_j to -q, without the one that vanishes. The original takes scaled eigenvectors; the sum
    over a batch that is sent back is the same.

    Raises ShapeError unless there are samples of at least two classes.

    >>> import numpy as np
    >>> seeds = np.stack(list(softmax_fisher_seeds(np.log(np.array([[0.5, 0.25, 0.25]])))))
    >>> np.round(np.einsum("kni,knj->nij", seeds, seeds), 12).tolist()
    [[[0.25, -0.125, -0.125], [-0.125, 0.1875, -0.0625], [-0.125, -0.0625, 0.1875]]]
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ShapeError(f"softmax_fisher_seeds: logits have shape {tuple(logits.shape)}, expected (n, at least 2)")
    xp = namespace(logits)
    values = xp.astype(logits, xp.float64, copy=False)
    q = xp.exp((values - xp.max(values, axis=1, keepdims=True)) / 2)
    q = q / xp.sqrt(xp.sum(q**2, axis=1, keepdims=True))
    unit = xp.eye(int(logits.shape[1]), dtype=xp.float64, device=logits.device)
    last = q[:, -1:]
    common = (q**2 + last * unit[-1, :]) / (1.0 + last)
    for k in range(int(logits.shape[1]) - 1):
        yield xp.astype(q[:, k : k + 1] * (unit[k, :] - common), logits.dtype, copy=False)
