"""Optimizers with torch's definitions. Their state lives in ``Parameter.slots`` and grows with the parameter.

Data is replaced, never changed in place. Learning-rate schedules are callables, step -> lr::

    schedule = warm_up(cosine(1e-3, steps=1000), steps=50)
    for step in range(1050):
        optimizer.lr = schedule(step)
"""

from growarray.optim.optimizer import Optimizer
from growarray.optim.rules import SGD, Adam, AdamW
from growarray.optim.schedule import clip_gradients, constant, cosine, warm_up

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_gradients", "constant", "cosine", "warm_up"]
