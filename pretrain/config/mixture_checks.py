"""Rules of `data.mixture` and its later phases."""

import itertools
import math
from collections.abc import Iterator

from data_pipeline.config import LEAST_SHARE, DataConfig
from pretrain.config.errors import Problem


def mixture_problems(data: DataConfig, seq_length: int) -> Iterator[Problem]:
    """Every broken rule of the mixture."""
    if data.mixture is None:
        for name in ("mixture_max_epochs", "mixture_later"):
            if getattr(data, name):
                yield Problem(f"data.{name}", getattr(data, name), "needs data.mixture", "set that too")
        return
    names = ", ".join(data.mixture)
    for key, weights in (
        ("data.mixture", data.mixture),
        *((f"data.mixture_later[{number}].weights", phase.weights) for number, phase in enumerate(data.mixture_later)),
    ):
        whole = sum(weights.values())
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
            yield Problem(key, weights, "weights must not be negative")
        elif not whole > 0:
            yield Problem(key, weights, "at least one weight must be greater than 0")
        elif not math.isfinite(whole):
            yield Problem(key, weights, "must have a finite sum", "divide all weights by one number: only ratios count")
        for name, weight in weights.items():
            if 0 < weight < whole * LEAST_SHARE < math.inf:
                rule = f"is less than {LEAST_SHARE:.2g} of all weights, shares are kept to no finer"
                yield Problem(f"{key}.{name}", weight, rule, "raise it, or set it to 0")
        if unknown := sorted(weights.keys() - data.mixture.keys()):
            yield Problem(key, unknown[0], "is not in data.mixture", f"name {names}; with weight 0 one may begin later")
    for name, epochs in (data.mixture_max_epochs or {}).items():
        if name not in data.mixture:
            yield Problem("data.mixture_max_epochs", name, "is not in data.mixture", f"name {names}")
        if not (math.isfinite(epochs) and epochs > 0):
            yield Problem(f"data.mixture_max_epochs.{name}", epochs, "must be greater than 0")
    after = [phase.after_tokens for phase in data.mixture_later]
    begins = [0, *(-(-tokens // max(1, seq_length)) for tokens in after)]
    if any(later <= earlier for earlier, later in itertools.pairwise(begins)):
        rule = f"no two may begin at the same sample of {seq_length} tokens"
        yield Problem("data.mixture_later", after, f"after_tokens must be above 0 and grow from phase to phase; {rule}")
