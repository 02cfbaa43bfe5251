"""A law for the learning rate and the batch from sweeps of both: cells of (N, D), each with many runs.

The best pair of a cell is the minimum of a quadratic in log learning rate and log batch, fitted to the runs whose loss
is within `NEAR` of the cell's least. The law is a straight line through the logs of those pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import LinearNDInterpolator

from pretrain.scaling.laws.hyperparameters import HyperparameterLaw, PowerLaw
from pretrain.scaling.laws.points import Array, BadPoints

NEAR = 0.02
FEWEST_RUNS = 6
"""Runs that a quadratic of two variables needs."""
FEWEST_CELLS = 4


@dataclass(frozen=True)
class Sweep:
    """The runs of one cell, which differ in learning rate and batch only."""

    parameters: float
    """N, without embeddings."""
    tokens: float
    """D."""
    lr: Array
    batch_tokens: Array
    loss: Array

    def best_pair(self) -> tuple[float, float] | None:
        """The learning rate and batch tokens of least loss; None if the runs near it have no minimum."""
        near = self.loss < self.loss.min() * (1 + NEAR)
        if near.sum() < FEWEST_RUNS:
            return None
        logs = np.log([self.lr[near], self.batch_tokens[near]])
        centre = logs.mean(1)
        x, y = logs - centre[:, None]
        columns = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
        curve = np.linalg.lstsq(columns, self.loss[near], rcond=None)[0]
        bend = np.array([[2 * curve[3], curve[4]], [curve[4], 2 * curve[5]]])
        if np.linalg.eigvalsh(bend)[0] <= 0:
            return None
        lr, batch = np.exp(np.linalg.solve(bend, -curve[1:3]) + centre)
        return float(lr), float(batch)

    def excess(self, lr: float, batch_tokens: float) -> float:
        """Loss there over the least of the cell, minus 1, interpolated between runs; NaN outside of them."""
        logs = np.log(np.column_stack([self.lr, self.batch_tokens]))
        loss = LinearNDInterpolator(logs, self.loss, rescale=True)(np.log(lr), np.log(batch_tokens))
        return float(loss / self.loss.min() - 1)


def fit_law(name: str, sweeps: Sequence[Sweep]) -> HyperparameterLaw:
    """The law of the sweeps; raises BadPoints if fewer than four of them have a minimum."""
    best = [(sweep, pair) for sweep in sweeps if (pair := sweep.best_pair()) is not None]
    if len(best) < FEWEST_CELLS:
        raise BadPoints(f"{len(best)} of {len(sweeps)} sweeps have a minimum, and the law needs {FEWEST_CELLS}")
    log_n, log_d = (np.log([value(sweep) for sweep, _ in best]) for value in (_parameters, _tokens))
    pairs = np.log([pair for _, pair in best])
    one = np.ones_like(log_n)
    lr = np.linalg.lstsq(np.column_stack([one, log_n, log_d]), pairs[:, 0], rcond=None)[0]
    batch = np.linalg.lstsq(np.column_stack([one, log_d]), pairs[:, 1], rcond=None)[0]
    return HyperparameterLaw(
        name,
        f"fitted on {len(best)} sweeps",
        lr=PowerLaw(float(np.exp(lr[0])), float(lr[1]), float(lr[2])),
        batch=PowerLaw(float(np.exp(batch[0])), 0.0, float(batch[1])),
    )


def leave_one_out(sweeps: Sequence[Sweep]) -> Array:
    """The excess of each sweep at the pair that the law of the others gives."""
    excesses = []
    for left_out in sweeps:
        law = fit_law("others", [sweep for sweep in sweeps if sweep is not left_out])
        at = left_out.parameters, left_out.tokens
        excesses.append(left_out.excess(law.learning_rate(*at), law.batch_tokens(*at)))
    return np.array(excesses)


def _parameters(sweep: Sweep) -> float:
    return sweep.parameters


def _tokens(sweep: Sweep) -> float:
    return sweep.tokens
