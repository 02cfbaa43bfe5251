"""Everything that a run asks of an engine, from its first step to its resume, on any device."""

import contextlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.load import load_generate_config
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.runtime import Runtime
from pretrain.engine.build import build_engine
from pretrain.engine.interface import Engine
from pretrain.generation.continuing import Continuation, continue_all
from pretrain.generation.growing_text import GrowingText
from pretrain.run.state import RunState
from tests.support.models import EOD_ID, VOCAB_SIZE
from tests.support.training import LR, own_batch
from tests.support.whole_texts import WholeTexts

Watch = Callable[[str], AbstractContextManager[Any]]
"""Around each part of a course, by its name."""
Step = tuple[float, float, bool]
"""Loss, gradient norm, whether the parameters were updated."""
NUM_STEPS, SAVED_AFTER = 4, 2


@dataclass(frozen=True)
class Course:
    """The results, which are the same on every rank."""

    steps: list[Step]
    resumed: list[Step]
    """Those after the checkpoint again, by an engine that was restored from it."""
    evaluation: list[float]
    """Sum of losses and number of targets."""
    logits: list[float]
    tokens: list[int]
    """Likeliest continuation of a prompt."""


def run_course(
    here: Runtime,
    groups: ProcessGroups,
    config: RunConfig,
    folder: Path,
    *,
    padded: bool = False,
    watch: Watch = lambda part: contextlib.nullcontext(),
) -> Course:
    """Train, save in the middle, evaluate, generate; build another engine, restore it, train on.

    `padded`: some targets of every sample do not count, as with best-fit packing.
    """

    def take(engine: Engine, step: int, part: str) -> Step:
        tokens = own_batch(here, config, step)
        with watch(part):
            result = engine.train_step(tokens, LR, counted(tokens) if padded else None)
        return result.loss, result.grad_norm, result.applied

    def built() -> Engine:
        return build_engine(config, VOCAB_SIZE, groups, here.device, eod_id=EOD_ID)

    store = CheckpointStore(folder, groups=groups, keep_last=1)
    engine, steps = built(), []
    for step in range(NUM_STEPS):
        if step == SAVED_AFTER:
            with watch("save"):
                store.save(engine, RunState(step=step), {})
        steps.append(take(engine, step, "step" if step else "first step"))
    held_out = own_batch(here, config, 99)[: config.train.micro_batch_size + 1]  # the last micro-batch is filled up
    # As data_pipeline.stream.loader makes it: one value for each sample, expanded.
    counts = torch.arange(len(held_out)) > 0
    with watch("evaluation"):
        totals = engine.evaluate(held_out, counts[:, None].expand(-1, config.model.seq_length))
    prompt = own_batch(here, config, 98)[0, :5].tolist() if groups.layout.dp == 1 else [5, 6, 7, 8]
    with watch("generation"):
        logits = engine.logits(torch.tensor([prompt]))
        made = Continuation(prompt, 0, GrowingText(str, prompt))
        greedy = load_generate_config(["run=x", "temperature=0"])
        stepper = WholeTexts(engine.logits, config.model.seq_length)
        continue_all(stepper, [made], greedy, max_new_tokens=4, end_token=EOD_ID)
        tokens = [each.token for each in made.chosen]
    del engine
    engine, newest = built(), store.newest()
    assert newest is not None
    with watch("restore"):
        store.restore(newest, engine)
    resumed = [take(engine, step, "step after a resume") for step in range(SAVED_AFTER, NUM_STEPS)]
    return Course(steps, resumed, totals.cpu().tolist(), logits[0, -1].cpu().tolist(), tokens)


def whole_course(here: Runtime, groups: ProcessGroups, config: RunConfig) -> Course:
    """A course whose checkpoints are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return run_course(here, groups, config, Path(folder))


def check_course(found: Course, expected: Course, rel: float) -> None:
    """Both are of one model and its batches, on other devices or in another precision."""
    for step, (loss, norm, applied) in zip(found.steps, expected.steps, strict=True):
        assert step[0] == pytest.approx(loss, rel=rel) and step[1] == pytest.approx(norm, rel=10 * rel)
        assert step[2] is applied
    loss, count = found.evaluation
    assert count == expected.evaluation[1] and loss == pytest.approx(expected.evaluation[0], rel=rel)
    largest = max(map(abs, expected.logits))
    assert found.logits == pytest.approx(expected.logits, abs=50 * rel * largest)
    likeliest = found.logits.index(max(found.logits))
    assert found.tokens[:1] == ([] if likeliest == EOD_ID else [likeliest])
    for again, step in zip(found.resumed, found.steps[SAVED_AFTER:], strict=True):
        # A GPU may sum a table's gradients in another order each time.
        assert again[:2] == pytest.approx(step[:2], rel=rel)


def counted(tokens: Tensor) -> Tensor:
    """[n, s]: a document's last targets are padding, of another number in each sample."""
    length = tokens.shape[1] - 1
    return torch.arange(length)[None] < length - torch.arange(len(tokens))[:, None] % 5
