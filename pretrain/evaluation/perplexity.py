"""Loss on held-out text."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import evaluation_batches
from pretrain.engine.interface import Engine
from pretrain.tracking.pace import count_samples


def evaluate(
    engine: Engine,
    datasets: Mapping[str, PackedDataset],
    *,
    batch_size: int,
    rank: int,
    size: int,
    max_samples: int | None,
    show: Callable[[int, int], None] = lambda done, total: None,
    ask_stop: Callable[[], Callable[[], bool]] = lambda: lambda: False,
) -> dict[str, float] | None:
    """Mean loss (nats a token), perplexity and bits per byte over the first `max_samples` samples of each dataset.

    With several datasets, each one has its own `loss/NAME`, `perplexity/NAME` and `bits_per_byte/NAME`; the plain names
    are over all tokens. Bits per byte let models with different tokenizers be compared: bytes are those of the
    validation text, and end-of-document tokens count as cost without bytes. Must be called on all ranks. `show` is
    called with the samples done and the total, at the start and after each batch.

    `ask_stop` is called on all ranks before each batch, and its answer, which is the same on all of them, is read after
    the batch. If it is True, the rest is skipped and the result is None.
    """
    started = time.perf_counter()
    num_samples = count_samples((dataset.num_samples for dataset in datasets.values()), max_samples)
    show(0, num_samples)
    values: dict[str, float] = {}
    whole, num_bytes, samples = torch.zeros(2, dtype=torch.float64), 0.0, 0
    for name, dataset in datasets.items():
        totals = torch.zeros(2, dtype=torch.float64)
        for batch in evaluation_batches(dataset, batch_size=batch_size, rank=rank, size=size, max_samples=max_samples):
            assert batch.mask is not None, "given for every evaluation"
            is_to_stop = ask_stop()
            totals += engine.evaluate(batch.tokens, batch.mask).cpu()
            samples += batch.next_position - batch.position
            show(samples, num_samples)
            if is_to_stop() and samples < num_samples:
                return None
        # The bytes of the text that was read: the split's bytes times the share of its tokens that was read.
        bytes_read = totals[1].item() * dataset.record.num_text_bytes / dataset.record.num_tokens
        if len(datasets) > 1:
            values |= {f"{key}/{name}": value for key, value in _figures(totals, bytes_read).items()}
        whole += totals
        num_bytes += bytes_read
    return {
        **_figures(whole, num_bytes),
        **values,
        "samples": samples,
        "seconds": time.perf_counter() - started,
    }


def _figures(totals: Tensor, num_bytes: float) -> dict[str, float]:
    """`totals`: sum of losses and number of tokens; `num_bytes` is 0 for the random tokens of `pretrain bench`."""
    loss = (totals[0] / totals[1]).item()
    values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return values | {"bits_per_byte": totals[0].item() / math.log(2) / num_bytes} if num_bytes else values
