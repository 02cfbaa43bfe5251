"""The peak learning rate and the batch of a run, by a named law, a law in the ladder file, or the configuration."""

from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.scaling.ladder.spec import PowerSpec, RatesSpec


@dataclass(frozen=True)
class Rates:
    """The learning rate and the batch of one run."""

    lr: float
    """Peak learning rate."""
    batch_tokens: float
    """Tokens in a step, not rounded."""


def rates_of(spec: RatesSpec, parameters: float, tokens: float, config: RunConfig) -> Rates:
    """The rates for N parameters and D tokens. A law in the file comes before the named one."""
    lr, batch = config.optim.lr, float(config.train.global_batch_size * config.model.seq_length)
    if spec.law is not None:
        from pretrain.scaling.laws.hyperparameters import named_law

        law = named_law(spec.law)
        lr, batch = law.learning_rate(parameters, tokens), law.batch_tokens(parameters, tokens)
    if spec.lr.coefficient:
        lr = _at(spec.lr, parameters, tokens)
    if spec.batch.coefficient:
        batch = _at(spec.batch, parameters, tokens)
    return Rates(lr, batch)


def _at(law: PowerSpec, parameters: float, tokens: float) -> float:
    return float(law.coefficient * parameters**law.parameters_exponent * tokens**law.tokens_exponent)
