"""Settings that follow from other settings. Each is computed here, and nowhere else.

The number of steps of a run also depends on its progress: see `pretrain.run.length.RunLength`.
"""

from dataclasses import replace

from pretrain.config.model import ModelConfig
from pretrain.config.parallel import ParallelConfig
from pretrain.config.run import RunConfig, TrainConfig


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int | None:
    """Number of replicas with samples of their own, or None if tp * cp * pp does not divide the number of ranks."""
    sample_ranks = parallel.tp * parallel.cp * parallel.pp
    if min(parallel.tp, parallel.cp, parallel.pp) < 1 or world_size % sample_ranks:
        return None
    return world_size // sample_ranks


def sharding_size(parallel: ParallelConfig, world_size: int) -> int | None:
    """Number of ranks that ZeRO divides a stage over: those that share samples each count."""
    replicas = data_parallel_size(parallel, world_size)
    return None if replicas is None else replicas * parallel.cp


def micro_batch_size(train: TrainConfig) -> int:
    """The number of samples that one rank runs at once, when it is no longer `auto`."""
    size = train.micro_batch_size
    assert size != "auto", "the planner replaces auto by a number"
    return size


def with_micro_batch_size(config: RunConfig, size: int) -> RunConfig:
    """The configuration with this number of samples at once."""
    return replace(config, train=replace(config.train, micro_batch_size=size))


def micro_batches(train: TrainConfig, dp: int) -> int | None:
    """Number of micro-batches that each rank runs in a step, or None if they do not divide the global batch."""
    at_once = micro_batch_size(train) * dp
    if at_once < 1 or train.global_batch_size < 1 or train.global_batch_size % at_once:
        return None
    return train.global_batch_size // at_once


def evaluation_batch_size(config: RunConfig) -> int:
    """The number of samples that one rank evaluates at once."""
    return config.evaluation.micro_batch_size or micro_batch_size(config.train)


def tokens_per_step(config: RunConfig) -> int:
    """Number of tokens in one optimizer step, over all ranks."""
    return config.train.global_batch_size * config.model.seq_length


def model_vocab_size(model: ModelConfig, tokenizer_size: int) -> int:
    """Number of tokens that the model predicts: at least those of the tokenizer."""
    return model.vocab_size or tokenizer_size


def padded_vocab_size(model: ModelConfig, vocab_size: int, tp: int) -> int:
    """Number of rows of the embedding. Every tensor-parallel rank holds the same number."""
    multiple = model.vocab_multiple_of * tp
    return -(-vocab_size // multiple) * multiple
