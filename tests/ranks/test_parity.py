"""The engine computes what one process of plain torch computes: loss, gradient norm and parameters, step by step."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.engine.schedule import positions_of
from pretrain.layout.runtime import Runtime
from pretrain.model.init import VOCABULARY_TABLES
from pretrain.model.parameters import logical_parts
from pretrain.optim.param_groups import decay_groups
from tests.support.models import VOCAB_SIZE, batch_of, run_config
from tests.support.ranks import run_ranks
from tests.support.training import LR, gathered, plain_stage, start, train, whole_state

STEPS = range(5)
CLIP = 0.2
SETTINGS = (
    f"optim.clip_grad_norm={CLIP}",
    # Some gradients are zero by the model's symmetry (the key bias: softmax does not see a shift) and hold rounding
    # noise of 1e-9. With the usual eps of 1e-8 Adam would blow that up to steps of the size of the learning rate, other
    # ones for each order of summation; clipped gradients that mean something are near 1e-3.
    "optim.eps=1e-4",
)


@dataclass(frozen=True)
class Run:
    losses: np.ndarray
    norms: np.ndarray
    weights: dict[str, np.ndarray]


def engine_run(here: Runtime, config: RunConfig) -> Run:
    engine = start(here, config)
    results = train(here, config, engine, STEPS)
    assert all(result.applied for result in results)
    state = whole_state(engine)
    weights = {name.removeprefix("weight/"): value for name, value in state.items() if name.startswith("weight/")}
    return Run(np.array([r.loss for r in results]), np.array([r.grad_norm for r in results]), weights)


def plain_run(here: Runtime, config: RunConfig) -> Run:
    """The reference: no DeepSpeed, no schedule, no accumulation, whole batches."""
    stage, model, optim = plain_stage(here, config), config.model, config.optim
    adamw = torch.optim.AdamW(
        decay_groups(stage.named(), optim.weight_decay), lr=LR, betas=(optim.beta1, optim.beta2), eps=optim.eps
    )
    losses, norms = [], []
    for step in STEPS:
        tokens = torch.from_numpy(batch_of(step, config.train.global_batch_size, config))
        inputs = tokens[:, :-1]
        loss = stage(0, inputs, positions_of(inputs), None, labels=tokens[:, 1:]).mean()
        adamw.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(stage.parameters(), optim.clip_grad_norm).item())
        adamw.step()
        losses.append(loss.item())
    weights = {
        part.name: value.detach().flatten()[part.offset :][: np.prod(part.shape)].view(part.shape).numpy()
        for value, local in stage.local.items()
        for part in logical_parts(local, model=model, vocab_size=VOCAB_SIZE, tp=1, tp_rank=0)
    }
    return Run(np.array(losses), np.array(norms), weights)


@functools.cache
def reference(model: str) -> Run:
    (run,) = run_ranks(plain_run, 1, run_config(model, *SETTINGS, *LAYERS, *batches(1)))
    return run


LAYERS = ("model.num_layers=4",)


def batches(dp: int, micro_batches: int = 4) -> tuple[str, ...]:
    """The same global batch of 24 samples whatever the layout, in so many micro-batches on each rank."""
    return "train.global_batch_size=24", f"train.micro_batch_size={24 // dp // micro_batches}"


def settings(model: str, world_size: int, *overrides: str, **values: Any) -> RunConfig:
    return run_config(model, *SETTINGS, *LAYERS, *batches(world_size), *overrides, **values)


CASES = [(model, stage, world_size) for model in ("gpt", "llama") for stage in range(4) for world_size in (1, 2)]
CASES += [("llama_tied", stage, 2) for stage in range(4)]
CASES += [("gpt_odd", stage, 3) for stage in range(4)]


@pytest.mark.parametrize(("model", "stage", "world_size"), CASES)
def test_equals_one_process_of_plain_torch(model: str, stage: int, world_size: int) -> None:
    expected = reference(model)
    runs = run_ranks(engine_run, world_size, settings(model, world_size, zero_stage=stage))
    for run in runs:
        np.testing.assert_allclose(run.losses, expected.losses, rtol=1e-6)
        np.testing.assert_allclose(run.norms, expected.norms, rtol=1e-6)
        assert run.weights.keys() == expected.weights.keys()
        for name, value in run.weights.items():
            np.testing.assert_allclose(value, expected.weights[name], rtol=0, atol=1e-5, err_msg=name)
    assert (expected.norms > CLIP).all(), "clipping must bite for this test to see it"


def trained_padding(here: Runtime, config: RunConfig) -> float:
    """Largest absolute value in the rows that pad the vocabulary, after training."""
    engine = start(here, config)
    train(here, config, engine, STEPS)
    largest = 0.0
    for name, _, parameter in engine.stage.named():
        if name.endswith(VOCABULARY_TABLES):
            with gathered(parameter):
                assert parameter.shape[0] == 96
                largest = max(largest, parameter[VOCAB_SIZE:].abs().max().item())
    return largest


@pytest.mark.parametrize("stage", range(4))
def test_padding_of_the_vocabulary_stays_zero(stage: int) -> None:
    assert run_ranks(trained_padding, 2, settings("llama", 2, zero_stage=stage)) == [0.0, 0.0]


def test_padding_of_the_vocabulary_changes_nothing() -> None:
    (run,) = run_ranks(engine_run, 1, settings("gpt", 1, "model.vocab_multiple_of=1"))
    np.testing.assert_allclose(run.losses, reference("gpt").losses, rtol=1e-6)
    np.testing.assert_allclose(run.norms, reference("gpt").norms, rtol=1e-6)
