"""`pretrain prepare`: text to tokenizer and shards."""

from data_pipeline.prepare import dataset as pipeline
from pretrain.config.checks import check_prepare
from pretrain.config.run import RunConfig


def prepare(config: RunConfig) -> None:
    """Make the dataset that `train` with the same overrides reads; samples are as long as the model's sequence."""
    check_prepare(config)
    pipeline.prepare(config.data, config.tokenizer, config.prepare, seq_length=config.model.seq_length)
