"""Loss on held-out text."""

import math
import time

import torch
from torch import Tensor

from data_pipeline.loader import evaluation_batches
from data_pipeline.shards.reader import PackedDataset
from pretrain.engine.interface import Engine


def evaluate(
    engine: Engine, dataset: PackedDataset, *, batch_size: int, rank: int, size: int, max_samples: int | None
) -> dict[str, float]:
    """Mean loss (nats a token), perplexity and bits per byte over the first `max_samples` samples.

    Bits per byte let models with different tokenizers be compared: bytes are those of the validation text, and
    end-of-document tokens count as cost without bytes. Called on all ranks together.
    """
    started = time.perf_counter()
    totals: Tensor = torch.zeros(2, dtype=torch.float64)
    for batch in evaluation_batches(dataset, batch_size=batch_size, rank=rank, size=size, max_samples=max_samples):
        totals += engine.evaluate(batch.tokens, batch.mask).cpu()
    loss = (totals[0] / totals[1]).item()
    split = dataset.manifest.splits["validation"]
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) * split.num_tokens / split.num_text_bytes,
        "samples": int(totals[1].item()) // dataset.manifest.seq_length,
        "seconds": time.perf_counter() - started,
    }
