"""Each preset has the size that was published for it."""

from pathlib import Path

import pytest

from pretrain.config.load import load_run_config
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


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_preset_has_its_published_size(preset: str) -> None:
    published, vocab_size = PUBLISHED[preset]
    model = load_run_config([f"model={preset}"]).model
    # Llama's cards give four digits, the GPT-3 table two or three.
    tolerance = 0.001 if preset.startswith("llama") else 0.02
    assert count_parameters(model, vocab_size).total == pytest.approx(published, rel=tolerance)


def test_every_model_preset_is_either_published_or_tiny() -> None:
    folder = Path(__file__).parents[2] / "conf" / "model"
    assert {path.stem for path in folder.glob("*.yaml")} == {*PUBLISHED, "tiny", "tiny_llama"}
