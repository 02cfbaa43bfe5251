"""Each preset has the size that was published for it, each named layout is legal for the model that it is named for."""

from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config.checks import check_model, check_run
from pretrain.config.load import load_run_config
from pretrain.config.parallel import stage_chunks
from pretrain.model.size import count_parameters

GPT_VOCABULARY, LLAMA_VOCABULARY = 50257, 128256

# Brown et al. 2020 table 2.1; Turing-NLG (Microsoft 2020); Smith et al. 2022; Llama 3 model cards.
PUBLISHED = {
    "gpt3_125m": (125e6, GPT_VOCABULARY),
    "gpt3_350m": (350e6, GPT_VOCABULARY),
    "gpt3_760m": (760e6, GPT_VOCABULARY),
    "gpt3_1.3b": (1.3e9, GPT_VOCABULARY),
    "gpt3_2.7b": (2.7e9, GPT_VOCABULARY),
    "gpt3_6.7b": (6.7e9, GPT_VOCABULARY),
    "gpt3_13b": (13.0e9, GPT_VOCABULARY),
    "gpt3_175b": (175e9, GPT_VOCABULARY),
    "turing_nlg_17b": (17e9, GPT_VOCABULARY),
    "mt_nlg_530b": (530e9, GPT_VOCABULARY),
    "llama_1b": (1.236e9, LLAMA_VOCABULARY),
    "llama_3b": (3.213e9, LLAMA_VOCABULARY),
    "llama_8b": (8.030e9, LLAMA_VOCABULARY),
    "llama_70b": (70.554e9, LLAMA_VOCABULARY),
}


COUNTED = {
    "qwen3_0.6b": (151_936, 596_049_920),
    "qwen3_1.7b": (151_936, 1_720_574_976),
    "qwen3_4b": (151_936, 4_022_468_096),
    "qwen3_8b": (151_936, 8_190_735_360),
    "qwen3_14b": (151_936, 14_768_307_200),
    "qwen3_32b": (151_936, 32_762_123_264),
    "llama_3.1_8b": (128_256, 8_030_261_248),
    "smollm3_3b": (128_256, 3_075_098_624),
}
"""Vocabulary, and the number of parameters that the model cards on huggingface.co give."""


@pytest.mark.parametrize("preset", COUNTED)
def test_preset_has_exactly_the_published_parameters(preset: str) -> None:
    vocab_size, total = COUNTED[preset]
    model = load_run_config([f"model={preset}"]).model
    assert count_parameters(model, vocab_size).total == total
    assert not list(check_model(model))


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_preset_has_its_published_size(preset: str) -> None:
    published, vocab_size = PUBLISHED[preset]
    model = load_run_config([f"model={preset}"]).model
    # Llama's cards give four digits, the GPT-3 table two or three.
    tolerance = 0.001 if preset.startswith("llama") else 0.02
    assert count_parameters(model, vocab_size).total == pytest.approx(published, rel=tolerance)


# Jiang et al. 2024; Qwen3 technical report, table 2. The last one is not published: its size follows from its shape.
WITH_EXPERTS = {
    "mixtral_8x7b": (46.70e9, 12.88e9, 32000),
    "qwen3_30b_a3b": (30.5e9, 3.35e9, 151936),
    "deepseek_v3_like": (674.8e9, 41.36e9, 129280),
}


@pytest.mark.parametrize("preset", sorted(WITH_EXPERTS))
def test_preset_with_experts_has_its_total_and_active_size(preset: str) -> None:
    total, active, vocab_size = WITH_EXPERTS[preset]
    count = count_parameters(load_run_config([f"model={preset}"]).model, vocab_size)
    assert count.total == pytest.approx(total, rel=0.002) and count.active == pytest.approx(active, rel=0.002)


def test_tiny_experts_are_as_active_as_tiny_llama() -> None:
    sparse, dense = (
        count_parameters(load_run_config([f"model={name}"]).model, 1000) for name in ("tiny_experts", "tiny_llama")
    )
    assert sparse.active == pytest.approx(dense.total, rel=0.005) and sparse.total > 2 * dense.total


WIDER_HEADS = {f"{preset}_head128": preset for preset in ("gpt3_125m", "gpt3_350m", "gpt3_760m", "gpt3_2.7b")}


@pytest.mark.parametrize("preset", sorted(WIDER_HEADS))
def test_wider_presets_differ_only_in_their_heads(preset: str) -> None:
    published = load_run_config([f"model={WIDER_HEADS[preset]}"]).model
    model = load_run_config([f"model={preset}"]).model
    assert model.head_size == 128 != published.head_size
    assert model == replace(published, name=preset, num_heads=model.num_heads)
    assert count_parameters(model, GPT_VOCABULARY).total == count_parameters(published, GPT_VOCABULARY).total


def test_every_preset_is_published_wider_or_tiny() -> None:
    folder = Path(__file__).parents[3] / "conf" / "model"
    assert {path.stem for path in folder.glob("*.yaml")} == {
        *(*PUBLISHED, *COUNTED, *WITH_EXPERTS, *WIDER_HEADS),
        *("tiny", "tiny_llama", "tiny_experts"),
    }


# Layout -> model, ranks and samples in a step: where the layout was published, those of the publication.
LAYOUTS = {
    "default": ("gpt3_1.3b", 32, 512),
    "tp2": ("gpt3_1.3b", 2, 8),
    "tp2_pp2": ("llama_1b", 8, 16),
    "tp8": ("llama_8b", 8, 8),
    "gpt3_2.7b": ("gpt3_2.7b", 64, 512),
    "gpt3_6.7b": ("gpt3_6.7b", 128, 512),
    "gpt3_13b": ("gpt3_13b", 256, 1024),
    "gpt3_175b": ("gpt3_175b", 1536, 1536),
    "gpt3_175b_interleaved": ("gpt3_175b", 96, 60),
    "turing_nlg_17b": ("turing_nlg_17b", 256, 512),
    "llama_8b": ("llama_8b", 128, 512),
    "llama_70b": ("llama_70b", 1024, 1792),
    "mt_nlg_530b": ("mt_nlg_530b", 2240, 1920),
    "mt_nlg_530b_interleaved": ("mt_nlg_530b", 2520, 2520),
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_named_layout_is_legal_for_its_model(layout: str) -> None:
    model, ranks, samples = LAYOUTS[layout]
    batch = (f"train.global_batch_size={samples}", "train.micro_batch_size=1")
    config = load_run_config([f"model={model}", f"parallel={layout}", *batch])
    check_run(config, world_size=ranks)
    assert sum(chunk.num_layers for chunk in stage_chunks(config.parallel, config.model.num_layers)) == (
        config.model.num_layers
    )


def test_every_named_layout_is_tried() -> None:
    folder = Path(__file__).parents[3] / "conf" / "parallel"
    assert {path.stem for path in folder.glob("*.yaml")} == {*LAYOUTS}
