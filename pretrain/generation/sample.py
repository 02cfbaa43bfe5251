"""A short sample of text at the end of training, from the model that is still in memory."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.errors import UserError, error_line
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.run import RunConfig
from pretrain.engine.interface import Engine
from pretrain.generation.sampling import choose, known_logits
from pretrain.run.tokenizer import tokenizer_of
from pretrain.tracking.report import SAMPLE_FILE

PROMPT_TOKENS, NEW_TOKENS, SECONDS = 16, 64, 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Likely:
    """The default sampling settings: temperature and top-k keep the text likely but varied."""

    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float | None = None


def write_sample(
    config: RunConfig,
    run_dir: Path,
    engine: Engine,
    validation: PackedDataset,
    *,
    control: dist.ProcessGroup,
    stop_requested: Callable[[], bool],
) -> None:
    """Continue the beginning of the validation text, within a time limit, into sample.txt; called on all ranks.

    A compiled model gives no sample, because it would be compiled again for each length. Neither does a dataset
    without a tokenizer file.
    """
    if config.engine.compile != "none" or not validation.manifest.tokenizer.file:
        return
    prompt = validation.read(np.zeros(1, dtype=np.int64))[0][:PROMPT_TOKENS].tolist()
    end_token = validation.manifest.tokenizer.eod_id
    tokens = continue_in_time(
        known_logits(engine, validation.manifest.tokenizer.vocab_size),
        prompt,
        max_context=config.model.seq_length,
        end_token=end_token,
        seed=config.run.seed,
        control=control,
        is_over=_time_limit(stop_requested),
    )
    if dist.get_rank() == 0:
        try:
            text = tokenizer_of(run_dir, config.data).decode(tokens)
            write_durably(run_dir / SAMPLE_FILE, f"{text}\n".encode())
        except (OSError, UserError) as error:
            log.warning("no sample of text: %s", error_line(error))


def continue_in_time(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    prompt: list[int],
    *,
    max_context: int,
    end_token: int,
    seed: int,
    control: dist.ProcessGroup,
    is_over: Callable[[], bool],
) -> list[int]:
    """The prompt and up to NEW_TOKENS tokens after it.

    Rank 0 decides each token and when to end, so that ranks whose results differ in the last bits stay together.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = logits_of(torch.tensor([tokens[-max_context:]]))[0, -1].cpu()
        ends = is_over() or not logits.isfinite().all()
        decided = torch.tensor([end_token if ends else choose(logits, Likely(), generator)])
        dist.broadcast(decided, src=0, group=control)
        if decided.item() == end_token:
            break
        tokens.append(int(decided.item()))
    return tokens


def _time_limit(stop_requested: Callable[[], bool]) -> Callable[[], bool]:
    deadline = time.monotonic() + SECONDS
    return lambda: stop_requested() or time.monotonic() > deadline
