"""The engine computes what one process of plain torch computes, in any layout: loss, gradient norm and parameters.

Where documents are kept apart (data.document_mask), what it computes for each document alone.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.schedule import positions_of
from pretrain.model.gpt import Stage
from pretrain.model.init import VOCABULARY_TABLES
from pretrain.model.parameters import logical_parts
from pretrain.optim.param_groups import parameter_groups
from tests.support.models import EOD_ID, VOCAB_SIZE, batch_of, batches, run_config
from tests.support.parts import full_except
from tests.support.plain_muon import PlainMuon
from tests.support.ranks import run_ranks
from tests.support.training import LR, gathered, plain_stage, start, train, whole_state

STEPS = range(5)
SETTINGS = (
    "optim.clip_grad_norm=0.2",
    # Some gradients are zero by the model's symmetry (softmax is invariant to a shift by the key bias) and consist of
    # rounding noise of 1e-9. With the usual eps of 1e-8 Adam would amplify it to steps as large as the learning rate,
    # which differ with the order of summation. Real gradients are near 1e-3 after clipping.
    "optim.eps=1e-4",
)
SAMPLES = 48
DEGREES = ("tp", "cp", "pp", "vp", "dp", "ep", "etp")


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
    """The reference: no DeepSpeed, no schedule, no accumulation, whole batches, and no masks for documents."""
    stage, model, optim = plain_stage(here, config), config.model, config.optim
    groups = parameter_groups(stage.named(), model, optim)
    adamw = torch.optim.AdamW(
        [{**group, "lr": LR * group["lr_scale"]} for group in groups if not group["is_muon"]],
        betas=(optim.beta1, optim.beta2),
    )
    names = {parameter: name for name, _, parameter in stage.named()}
    muon = [
        PlainMuon(parameter, names[parameter], LR * group["lr_scale"], group["weight_decay"], config)
        for group in groups
        if group["is_muon"]
        for parameter in group["params"]
    ]
    losses, norms = [], []
    for step in STEPS:
        tokens = torch.from_numpy(batch_of(step, config.train.global_batch_size, config))
        loss = plain_loss(stage, tokens, config)
        stage.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(stage.parameters(), optim.clip_grad_norm).item())
        adamw.step()
        for matrix in muon:
            matrix.step()
        for router in stage.routers:
            router.bias += config.model.experts.bias_rate * (router.load.mean() - router.load).sign()
            router.bias -= router.bias.mean()
            router.load.zero_()
        losses.append(loss.item())
    weights: dict[str, np.ndarray] = {router.name + ".bias": router.bias.numpy() for router in stage.routers}
    for value, local in stage.local.items():
        for part in logical_parts(local, model=model, vocab_size=VOCAB_SIZE, tp=1, tp_rank=0):
            whole = weights.setdefault(part.name, np.empty(part.shape, np.float32))
            place = tuple(slice(o, o + n) for o, n in zip(part.origin, part.part_shape, strict=True))
            whole[place] = value.detach().flatten()[part.offset :][: np.prod(part.part_shape)].view(part.part_shape)
    return Run(np.array(losses), np.array(norms), weights)


def plain_loss(stage: Stage, tokens: Tensor, config: RunConfig) -> Tensor:
    """Mean over all tokens of samples [n, s + 1]."""
    parts = documents_of(tokens) if config.data.document_mask else [tokens]
    losses = [stage(0, part[:, :-1], positions_of(part[:, :-1]), None, labels=part[:, 1:]) for part in parts]
    return torch.cat([loss.flatten() for loss in losses]).mean()


def documents_of(tokens: Tensor) -> list[Tensor]:
    """Split samples [n, s + 1] into documents, each with the following token, grouped by length."""
    by_length: dict[int, list[Tensor]] = {}
    for sample in tokens:
        ends = sample[:-1] == EOD_ID
        last = (ends[:-1] & ~ends[1:]).nonzero().flatten().tolist()
        borders = [0, *(end + 1 for end in last), len(sample) - 1]
        for first, last in itertools.pairwise(borders):
            by_length.setdefault(last - first, []).append(sample[first : last + 1])
    return [torch.stack(documents) for documents in by_length.values()]


@functools.cache
def reference(model: str, num_layers: int, *data: str) -> Run:
    layers = f"model.num_layers={num_layers}"
    (run,) = run_ranks(plain_run, 1, run_config(model, *SETTINGS, layers, *batches(1, 1, SAMPLES), *data))
    return run


@dataclass(frozen=True)
class Layout:
    """A model, how it is split, and how the engine works."""

    model: str = "gpt"
    zero: int = 1
    tp: int = 1
    pp: int = 1
    dp: int = 1
    vp: int = 1
    sp: bool = False
    cp: int = 1
    ep: int = 1
    etp: int = 1
    micro_batches: int = 3
    overrides: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def num_layers(self) -> int:
        return 4 if self.pp * self.vp > 2 or UNEVEN in self.overrides else 2

    @property
    def config(self) -> RunConfig:
        shape = {
            "tp": self.tp,
            "pp": self.pp,
            "vp": self.vp,
            "sp": self.sp,
            "cp": self.cp,
            "ep": self.ep,
            "etp": self.etp,
        }
        batch = batches(self.dp, self.micro_batches, SAMPLES)
        layers = f"model.num_layers={self.num_layers}"
        least = ("engine.grad_reduction=per_micro_batch", "engine.param_gather=per_micro_batch")
        return run_config(self.model, *SETTINGS, layers, *batch, *least, *self.overrides, zero_stage=self.zero, **shape)

    def __str__(self) -> str:
        degrees = "".join(f"{name}{getattr(self, name)}" for name in DEGREES if getattr(self, name) > 1)
        parts = [self.model, f"zero{self.zero}", degrees, "sp" * self.sp, f"m{self.micro_batches}"]
        return "-".join([*filter(None, parts), *(override.split(".", 1)[-1] for override in self.overrides)])


"""3 micro-batches: a pipeline of two stages runs all phases of 1F1B. Below there are more and fewer than stages."""
ONCE = "engine.grad_reduction=per_step"
HELD = "engine.param_gather=per_step"
DOCUMENTS = "data.document_mask=true"
WINDOWS = ("model.window=5", "model.full_attention_every=3")
UNEVEN = "parallel.pp_layout=Et|tttL"
SCALED = ("optim.base_width=16", "optim.base_depth=1", "optim.clip_grad_norm=0.05")
MUON = ("optim=muon", "optim.muon.lr_ratio=0.5", "optim.embedding_lr_ratio=2", "optim.clip_grad_norm=0.1")
LAYOUTS = [
    # One dimension.
    *(Layout(zero=zero) for zero in range(4)),
    *(Layout(model, zero, dp=2) for zero in range(4) for model in ("gpt", "llama")),
    *(Layout("llama_tied", zero, dp=4) for zero in (0, 3)),
    *(Layout("gpt_odd", zero, dp=3, micro_batches=4) for zero in range(4)),
    *(Layout(model, zero, tp=2) for zero in (0, 1, 3) for model in ("gpt", "llama")),
    *(Layout(model, 1, tp=4, sp=True) for model in ("gpt", "llama")),  # llama has fewer key/value heads than ranks
    Layout("llama_qk", 1, tp=2),
    Layout("llama_qk", 3, tp=2, sp=True),
    *(Layout(model, zero, pp=2) for zero in (0, 1, 2, 3) for model in ("gpt", "llama")),
    *(Layout(model, 3, pp=4, micro_batches=micro) for model, micro in (("gpt", 2), ("llama_tied", 4), ("gpt", 6))),
    Layout("gpt", 0, pp=4),
    # Two and three dimensions.
    *(Layout("gpt", zero, tp=2, pp=2, sp=sp) for zero, sp in ((1, True), (2, False), (3, True))),
    *(Layout("llama", zero, tp=2, dp=2, sp=sp) for zero, sp in ((1, False), (2, True), (3, True))),
    *(Layout("gpt", zero, pp=2, dp=2) for zero in (0, 1, 2, 3)),
    Layout("llama_tied", 3, pp=2, dp=3, micro_batches=2),
    Layout("gpt", 3, tp=2, pp=2, dp=2, sp=True),
    Layout("llama", 3, tp=2, pp=2, dp=2),
    # Interleaved and uneven stages.
    *(Layout("gpt", zero, pp=2, vp=2, micro_batches=2) for zero in (1, 3)),
    Layout("llama", 3, pp=2, vp=2, dp=2, micro_batches=4),
    Layout("gpt", 3, tp=2, pp=2, vp=2, sp=True, micro_batches=2),
    Layout("gpt", 3, pp=2, overrides=(UNEVEN,)),
    # Layers that differ, by their numbers over all stages.
    Layout("llama", 1, pp=2, vp=2, micro_batches=2, overrides=("model.no_rope_every=3",)),
    Layout("llama", 3, pp=2, vp=2, micro_batches=2, overrides=WINDOWS),
    Layout("gpt", 1, tp=2, cp=2, pp=2, sp=True, overrides=(*WINDOWS, DOCUMENTS)),
    Layout("llama", 0, cp=4, overrides=("model.window=7",)),
    Layout("llama", 2, dp=2, overrides=(*WINDOWS, DOCUMENTS, "engine.recompute.granularity=full")),
    # Samples that ranks share.
    *(Layout(model, 1, cp=2) for model in ("gpt", "llama")),
    *(Layout(model, 3, cp=4) for model in ("gpt", "llama")),
    Layout("llama", 3, cp=2, overrides=(DOCUMENTS,)),
    Layout("llama", 0, cp=4, overrides=(DOCUMENTS,)),
    Layout("gpt", 2, cp=2, overrides=(DOCUMENTS,)),
    Layout("llama", 1, tp=2, cp=2, sp=True),
    Layout("llama_qk", 3, tp=2, cp=2, sp=True, overrides=(DOCUMENTS,)),
    Layout("llama", 3, cp=2, pp=2),
    Layout("gpt", 3, cp=2, dp=2),
    Layout("llama_tied", 2, cp=2, pp=2, dp=2, overrides=(DOCUMENTS,)),
    Layout("llama", 3, tp=2, cp=2, pp=2, sp=True),
    Layout("llama", 3, tp=2, cp=2, pp=2, sp=True, overrides=(DOCUMENTS,)),
    Layout("gpt", 1, cp=2, pp=2, vp=2, micro_batches=2),
    Layout("llama", 3, cp=2, pp=2, overrides=(DOCUMENTS, "engine.recompute.granularity=full")),
    Layout(
        "llama", 1, cp=2, overrides=("engine.recompute.granularity=selective", "engine.recompute.modules=[core_attn]")
    ),
    Layout("llama", 1, tp=2, cp=2, sp=True, overrides=("model.seq_length=24", DOCUMENTS)),
    # Learning rates, eps and initial weights by width and depth, and a tied head's multiplier.
    *(Layout("gpt", zero, dp=2, overrides=SCALED) for zero in (0, 1, 2, 3)),
    Layout("gpt", 3, tp=2, pp=2, dp=2, sp=True, overrides=SCALED),
    Layout("llama", 1, tp=2, pp=2, dp=2, overrides=SCALED),
    # Muon.
    *(Layout("gpt", zero, overrides=MUON) for zero in (0, 1, 3)),
    *(Layout("llama", zero, dp=2, overrides=MUON) for zero in (0, 1, 2, 3)),
    *(Layout("gpt_odd", zero, dp=3, micro_batches=4, overrides=MUON) for zero in (1, 3)),
    Layout("llama", 0, tp=2, dp=2, overrides=MUON),
    Layout("llama_qk", 1, tp=2, sp=True, overrides=MUON),
    Layout("llama", 1, tp=4, sp=True, overrides=MUON),
    Layout("llama", 3, tp=2, dp=2, sp=True, overrides=MUON),
    Layout("llama_tied", 3, pp=2, dp=2, overrides=MUON),
    Layout("gpt", 1, pp=2, vp=2, micro_batches=2, overrides=MUON),
    Layout("gpt", 3, tp=2, pp=2, dp=2, sp=True, overrides=MUON),
    Layout("llama", 3, tp=2, cp=2, pp=2, sp=True, overrides=MUON),
    Layout("llama", 3, tp=2, dp=2, overrides=(*MUON, "optim.base_width=16", "optim.base_depth=1")),
    # Engine options.
    *(Layout("gpt", zero, pp=2, dp=2, overrides=(ONCE,)) for zero in (2, 3)),
    Layout("gpt", 3, pp=2, dp=2, overrides=(HELD,)),
    Layout("llama_tied", 3, pp=2, vp=2, dp=2, micro_batches=2, overrides=(HELD, ONCE)),
    Layout("gpt", 3, tp=2, pp=2, overrides=(HELD,)),
    *(Layout("gpt", zero, pp=2, dp=2, overrides=("engine.offload.optimizer=cpu",)) for zero in (1, 2, 3)),
    Layout("gpt", 3, tp=2, dp=2, sp=True, overrides=("engine.offload.optimizer=cpu", "engine.offload.params=cpu")),
    Layout("gpt", 3, pp=2, overrides=("engine.offload.optimizer=cpu", ONCE)),
    *(Layout("gpt", z, pp=2, vp=2, micro_batches=2, overrides=("engine.offload.optimizer=cpu",)) for z in (1, 2, 3)),
    # Experts: over data-parallel ranks, over tensor-parallel ranks, over both, and each of them over several ranks.
    Layout("balanced_experts"),
    *(Layout("experts", zero, dp=2, ep=2) for zero in range(4)),
    *(Layout("balanced_experts", zero, dp=4, ep=2) for zero in range(4)),
    Layout("balanced_experts", 3, pp=2, vp=2, dp=2, ep=2, micro_batches=2),
    *(Layout("experts", zero, tp=2, sp=True) for zero in (0, 1, 3)),
    Layout("balanced_experts", 3, tp=2, sp=True, ep=2),
    Layout("balanced_experts", 1, tp=4, sp=True, ep=2, etp=2),
    Layout("balanced_experts", 0, tp=2, dp=2, sp=True, ep=4),
    Layout("balanced_experts", 1, tp=2, dp=2, sp=True, ep=2, etp=2),
    Layout("balanced_experts", 3, tp=2, pp=2, dp=2, sp=True, ep=4),
    Layout("balanced_experts", 3, tp=2, pp=2, dp=2, sp=True, ep=2, etp=2),
    Layout("balanced_experts", 1, cp=2, ep=2),
    Layout("balanced_experts", 3, cp=2, tp=2, pp=2, sp=True, ep=4),
    *(Layout("experts", zero, dp=2, ep=2, overrides=("engine.offload.optimizer=cpu",)) for zero in (1, 3)),
    *(Layout("experts", 3, dp=2, ep=2, overrides=(each,)) for each in (HELD, ONCE)),
    Layout("balanced_experts", 3, dp=2, ep=2, overrides=("engine.recompute.granularity=full",)),
]


SHARED = (
    "gpt-zero1-cp2-m3",
    "llama_qk-zero3-tp2cp2-sp-m3-document_mask=true",
    "llama_tied-zero2-cp2pp2dp2-m3-document_mask=true",
    "gpt-zero1-cp2pp2vp2-m2",
)
"""Layouts in which ranks share samples, for every run of the tests."""
SHORT_OF_MUON = [
    str(layout)
    for layout in (
        Layout("llama", 0, dp=2, overrides=MUON),
        Layout("llama", 1, dp=2, overrides=MUON),
        Layout("llama", 3, tp=2, dp=2, sp=True, overrides=MUON),
        Layout("gpt", 1, pp=2, vp=2, micro_batches=2, overrides=MUON),
    )
]

FULL = (
    *(str(layout) for layout in LAYOUTS if layout.cp > 1 and str(layout) not in SHARED),
    "gpt-zero1-tp4-sp-m3",
    "gpt-zero3-pp4-m6",
    "llama-zero3-pp2vp2dp2-m4",
    "llama-zero3-tp2dp2-sp-m3",
    "llama-zero3-tp2pp2dp2-m3",
    "llama_tied-zero0-dp4-m3",
    *(str(Layout("gpt", zero, dp=2, overrides=SCALED)) for zero in (0, 2)),
    *(str(layout) for layout in LAYOUTS if layout.overrides[:4] == MUON and str(layout) not in SHORT_OF_MUON),
    str(Layout("llama", 1, tp=2, pp=2, dp=2, overrides=SCALED)),
    "balanced_experts-zero0-dp4ep2-m3",
    "balanced_experts-zero1-dp4ep2-m3",
    "balanced_experts-zero1-tp4ep2etp2-sp-m3",
    "balanced_experts-zero0-tp2dp2ep4-sp-m3",
    "balanced_experts-zero3-tp2pp2dp2ep2etp2-sp-m3",
    "experts-zero0-tp2-sp-m3",
    "experts-zero3-dp2ep2-m3-grad_reduction=per_step",
)
"""Layouts like others here, and the longest of them: only for all tests."""


@pytest.mark.parametrize(
    "layout", full_except(LAYOUTS, [layout for layout in LAYOUTS if str(layout) not in FULL]), ids=str
)
def test_equals_one_process_of_plain_torch(layout: Layout) -> None:
    assert_parity(layout)


OF_THE_MODEL = ("model.seq_length", "model.no_rope_every", "model.window", "model.full_attention_every")
"""Overrides that change the function. The padding of the vocabulary does not."""


def assert_parity(layout: Layout) -> None:
    data = [override for override in layout.overrides if override.startswith(("data.", "optim", *OF_THE_MODEL))]
    expected = reference(layout.model, layout.num_layers, *data)
    assert (expected.norms > layout.config.optim.clip_grad_norm).all(), "clipping must bite for this test to see it"
    for run in run_ranks(engine_run, layout.world_size, layout.config):
        np.testing.assert_allclose(run.losses, expected.losses, rtol=1e-6)
        np.testing.assert_allclose(run.norms, expected.norms, rtol=1e-6)
        assert run.weights.keys() == expected.weights.keys()
        for name, value in run.weights.items():
            np.testing.assert_allclose(value, expected.weights[name], rtol=0, atol=1e-5, err_msg=name)


def test_repeated_runs_are_equal_to_the_last_bit() -> None:
    layout = Layout("gpt", 3, tp=2, pp=2, dp=2, sp=True)
    first, second = (run_ranks(engine_run, layout.world_size, layout.config)[0] for _ in range(2))
    assert np.array_equal(first.losses, second.losses) and np.array_equal(first.norms, second.norms)
    assert all(np.array_equal(value, second.weights[name]) for name, value in first.weights.items())


def trained_padding(here: Runtime, config: RunConfig) -> float:
    """Largest absolute value in the rows that pad the vocabulary, after training."""
    engine = start(here, config)
    train(here, config, engine, STEPS)
    largest, rows = 0.0, 0
    for name, shape, parameter in engine.stage.named():
        if name.endswith(VOCABULARY_TABLES):
            with gathered(parameter):
                assert parameter.shape == shape
                padding = parameter[max(0, VOCAB_SIZE - engine.groups.tp_rank * shape[0]) :]
                largest, rows = max(largest, *padding.abs().flatten().tolist(), 0.0), rows + len(padding)
    assert rows or engine.groups.tp_rank < config.parallel.tp - 1, "the last rows are padding"
    return largest


@pytest.mark.parametrize("layout", [*(Layout("llama", zero, dp=2) for zero in range(4)), Layout("gpt", 1, tp=2, pp=2)])
def test_padding_of_the_vocabulary_stays_zero(layout: Layout) -> None:
    assert set(run_ranks(trained_padding, layout.world_size, layout.config)) == {0.0}


def test_padding_of_the_vocabulary_changes_nothing() -> None:
    assert_parity(Layout(overrides=("model.vocab_multiple_of=1",)))
