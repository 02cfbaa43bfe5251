"""Synthetic ladders of runs with a known law."""

import numpy as np

from pretrain.scaling.laws.parametric import Law
from pretrain.scaling.laws.points import Points, points_of

LAW = Law(e=1.8, a=480.0, alpha=0.347, b=2100.0, beta=0.367)


def ladder(
    sizes: int = 6, lengths: int = 5, noise: float = 0.002, undertuned: float = 0.0, seed: int = 0, law: Law = LAW
) -> Points:
    """A grid of sizes and tokens per parameter; `undertuned`: the share of runs that end up to 3 % too high."""
    rng = np.random.default_rng(seed)
    n = np.repeat(np.geomspace(3e7, 3e9, sizes), lengths)
    d = n * np.tile(np.geomspace(5, 160, lengths), sizes)
    log_loss = np.log(law.loss(n, d)) + noise * rng.standard_normal(len(n))
    log_loss += np.where(rng.random(len(n)) < undertuned, rng.uniform(0.0, 0.03, len(n)), 0.0)
    return points_of(n, d, np.exp(log_loss))


def isoflop_ladder(budgets: int = 5, sizes: int = 7, noise: float = 0.001, seed: int = 0, law: Law = LAW) -> Points:
    """Sizes on both sides of the best one at each of some budgets."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    n = law.best_size(flops) * np.tile(np.geomspace(0.3, 3.5, sizes), budgets)
    d = flops / 6 / n
    return points_of(n, d, law.loss(n, d) * np.exp(noise * rng.standard_normal(len(n))))
