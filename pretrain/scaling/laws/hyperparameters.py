"""Laws for the learning rate and the batch of a run, from its parameters and tokens.

`own` was fitted here on the 1,911 runs that Step Law published (`hyperparameter_fit` does that); the others are the
constants of their papers. Parameters N are those without embeddings. A batch is counted in tokens.
"""

from dataclasses import dataclass

from data_pipeline.errors import UserError
from pretrain.config.nearest import did_you_mean


@dataclass(frozen=True)
class PowerLaw:
    """coefficient * N^parameters_exponent * D^tokens_exponent."""

    coefficient: float
    parameters_exponent: float
    tokens_exponent: float

    def at(self, parameters: float, tokens: float) -> float:
        return float(self.coefficient * parameters**self.parameters_exponent * tokens**self.tokens_exponent)


@dataclass(frozen=True)
class HyperparameterLaw:
    """The best peak learning rate and the best batch, for AdamW and a cosine or WSD schedule."""

    name: str
    source: str
    lr: PowerLaw
    batch: PowerLaw

    def learning_rate(self, parameters: float, tokens: float) -> float:
        """The peak learning rate."""
        return self.lr.at(parameters, tokens)

    def batch_tokens(self, parameters: float, tokens: float) -> float:
        """Tokens in a batch, not rounded."""
        return self.batch.at(parameters, tokens)


def named_law(name: str) -> HyperparameterLaw:
    """The law of that name; raises UserError with a suggestion if it does not exist."""
    if name not in LAWS:
        known = list(LAWS)
        raise UserError(
            f"{name}: unknown learning-rate law", did_you_mean(name, known) or f"choose from {', '.join(known)}"
        )
    return LAWS[name]


LAWS = {
    law.name: law
    for law in (
        HyperparameterLaw(
            "own",
            "fitted on the dense runs of Step Law: 17 cells, 215M to 1.07B parameters, 4B to 100B tokens",
            lr=PowerLaw(10.55, -0.695, 0.208),
            batch=PowerLaw(0.546, 0.0, 0.569),
        ),
        HyperparameterLaw(
            "step_law",
            "Li et al. 2025, Predictable Scale: Part I, equation 1",
            lr=PowerLaw(1.79, -0.713, 0.307),
            batch=PowerLaw(0.58, 0.0, 0.571),
        ),
        # Published in compute: lr = 0.3118 C^-0.125 and batch = 0.2920 C^0.3271, here with C = 6 N D.
        HyperparameterLaw(
            "deepseek",
            "Bi et al. 2024, DeepSeek LLM, equation 1",
            lr=PowerLaw(0.3118 * 6**-0.125, -0.125, -0.125),
            batch=PowerLaw(0.2920 * 6**0.3271, 0.3271, 0.3271),
        ),
    )
}
