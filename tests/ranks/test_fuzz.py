"""Every layout that the checks accept trains as one process of plain torch does.

`pytest -m fuzz --rounds 50` draws new layouts and models; the suite's own few rounds are always the same.
"""

import contextlib
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError
from pretrain.config.run import RunConfig
from tests.ranks.test_parity import SETTINGS as PARITY_SETTINGS
from tests.ranks.test_parity import engine_run, plain_run
from tests.support.models import run_config
from tests.support.ranks import run_ranks

WORLD_SIZES = (1, 2, 2, 3, 4, 4, 4, 4, 5, 6, 6, 8, 8, 8)
SECONDS = 100
MODELS_PER_LAYOUT = 30

Settings = dict[str, Any]
"""Dotted keys of a configuration, and their values."""


def draw_case(seed: int) -> tuple[int, Settings, Settings]:
    """Number of ranks, and settings of the layout and the model: the first draw that is legal."""
    draw = random.Random(seed)
    while True:
        world_size, layout = draw_layout(draw)
        for _ in range(MODELS_PER_LAYOUT):  # otherwise layouts that fit any model would prevail
            model = draw_model(draw, layout)
            with contextlib.suppress(ConfigError):
                check_run(config_of(layout | model), world_size)
                return world_size, layout, model


def draw_layout(draw: random.Random) -> tuple[int, Settings]:
    """A number of ranks, and how they split a model."""
    world_size = draw.choice(WORLD_SIZES)
    tp = draw.choice(_divisors(world_size))
    pp = draw.choice(_divisors(world_size // tp))
    if draw.random() < 0.5:
        tp, pp = pp, tp
    cp = draw.choice(_divisors(world_size // tp // pp)) if draw.random() < 0.4 else 1
    dp = world_size // tp // pp // cp
    vp = draw.choice((1, 1, 2, 2, 3)) if pp > 1 else 1
    turns = pp if vp > 1 and draw.random() < 0.8 else 1
    micro_batches, micro_batch_size = turns * draw.randint(1, 6 // turns + 1), draw.randint(1, 3)
    modes, stage = ("auto", "per_step", "per_micro_batch"), draw.randint(0, 3)
    return world_size, {
        "parallel.tp": tp,
        "parallel.cp": cp,
        "parallel.pp": pp,
        "parallel.vp": vp,
        "parallel.sp": draw.random() < 0.5,
        "parallel.pp_layout": draw_cuts(draw, pp * vp) if pp > 1 and draw.random() < 0.4 else None,
        "train.micro_batch_size": micro_batch_size,
        "train.global_batch_size": micro_batch_size * micro_batches * dp,
        "engine.zero_stage": stage,
        "engine.grad_reduction": draw.choice(modes) if stage >= 2 else "auto",
        "engine.param_gather": draw.choice(modes) if stage == 3 else "auto",
        "engine.offload.optimizer": draw.choice(("none", "none", "none", "cpu")) if stage else "none",
        "engine.offload.params": draw.choice(("none", "none", "none", "cpu")) if stage == 3 else "none",
        "engine.recompute.granularity": draw.choice(("none", "none", "none", "selective", "full")),
        "engine.recompute.modules": draw.choice((("core_attn",), ("mlp",), ("core_attn", "mlp"))),
        "engine.recompute.method": draw.choice(("uniform", "block")),
        "engine.recompute.num_layers": draw.randint(1, 2),
    }


def draw_cuts(draw: random.Random, chunks: int) -> str:
    """Up to three layers in each chunk. Some chunks are empty, which is legal only at the ends."""
    return "E" + "|".join("t" * draw.choice((0, 1, 1, 1, 1, 2, 3)) for _ in range(chunks)) + "L"


def draw_model(draw: random.Random, layout: Settings) -> Settings:
    """A small model with features of both families, whose number of layers mostly fits the layout, and its data."""
    cuts, chunks = layout["parallel.pp_layout"], layout["parallel.pp"] * layout["parallel.vp"]
    layers = cuts.count("t") if cuts else chunks * draw.randint(1, max(1, 4 // chunks))
    heads, head_size = draw.choice((1, 2, 3, 4, 4, 5, 6, 8, 8)), draw.choice((4, 5, 6, 8))
    given = draw.random() < 0.25  # a head width other than hidden_size / num_heads
    return {
        "model.num_layers": layers if draw.random() < 0.9 else draw.randint(1, 8),
        "model.hidden_size": draw.choice((12, 21, 32)) if given else heads * head_size,
        "model.num_heads": heads,
        "model.num_query_groups": draw.choice((None, heads, 1, draw.randint(1, heads), draw.choice((2, 4)))),
        "model.head_dim": head_size if given else None,
        "model.ffn_hidden_size": draw.choice((12, 24, 24, 40, 48, 48, draw.randint(9, 60))),
        "model.seq_length": 2 * layout["parallel.cp"] * draw.randint(2, 6)
        if layout["parallel.cp"] > 1
        else draw.choice((8, 12, 16, 24, draw.randint(5, 24))),
        "model.vocab_multiple_of": draw.choice((1, 1, 3, 16, 64, 100)),
        "model.position": draw.choice(("learned", "rope")),
        "model.norm": draw.choice(("layernorm", "rmsnorm")),
        "model.activation": draw.choice(("gelu", "swiglu")),
        "model.tie_embeddings": draw.random() < 0.5,
        "model.qk_norm": draw.random() < 0.3,
        "model.bias": draw.random() < 0.5,
        "data.document_mask": draw.random() < 0.5,
    }


def config_of(settings: Settings) -> RunConfig:
    config: Any = run_config("gpt", *PARITY_SETTINGS)
    for key, value in settings.items():
        config = _replaced(config, key.split("."), value)
    return config


@pytest.mark.fuzz
def test_a_legal_layout_equals_one_process_of_plain_torch(fuzz_seed: int) -> None:
    world_size, layout, model = draw_case(fuzz_seed)
    print(f"again: pytest tests/ranks/test_fuzz.py --rounds 1 --seed {fuzz_seed}")
    print(f"{world_size} ranks:", *(f"{key}={value}" for key, value in (layout | model).items()))
    config = config_of(layout | model)
    batch = {"train.global_batch_size": config.train.global_batch_size, "train.micro_batch_size": 1}
    (expected,) = run_ranks(plain_run, 1, config_of(model | batch))
    for run in run_ranks(engine_run, world_size, config, timeout=SECONDS):
        np.testing.assert_allclose(run.losses, expected.losses, rtol=1e-6)
        np.testing.assert_allclose(run.norms, expected.norms, rtol=1e-6)
        assert run.weights.keys() == expected.weights.keys()
        for name, value in run.weights.items():
            np.testing.assert_allclose(value, expected.weights[name], rtol=0, atol=1e-5, err_msg=name)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _replaced(config: Any, path: Sequence[str], value: object) -> Any:
    """The configuration with another value for one key."""
    first, *rest = path
    return dataclasses.replace(config, **{first: _replaced(getattr(config, first), rest, value) if rest else value})
