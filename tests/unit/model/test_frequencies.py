"""Scaled rotary frequencies are those of the papers, and those of transformers to the last bit."""

from dataclasses import replace

import pytest
import torch

from pretrain.config.model import ModelConfig, RopeScaling
from pretrain.model.frequencies import rotary_amplitude, rotary_frequencies, rotary_tables
from tests.support.models import run_config
from tests.support.rope import reference_amplitude, reference_frequencies

LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_length=8192)
YARN = RopeScaling(kind="yarn", factor=4.0, original_length=32768)
SCALINGS = {
    "none": RopeScaling(),
    "llama3": LLAMA3,
    "llama3 with other limits": replace(LLAMA3, factor=32.0, low_freq_factor=0.5, high_freq_factor=6.0),
    "yarn": YARN,
    "yarn with other limits": replace(YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5),
    "yarn of a short context": replace(YARN, original_length=64),
}


def model(scaling: RopeScaling, base: float = 5e5, width: int = 128) -> ModelConfig:
    return replace(run_config("llama").model, rope_base=base, head_dim=width, rope_scaling=scaling)


@pytest.mark.parametrize("base", [1e4, 5e5])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_the_definition(name: str, base: float) -> None:
    shape = model(SCALINGS[name], base)
    expected = torch.tensor(reference_frequencies(shape))
    torch.testing.assert_close(rotary_frequencies(shape), expected, rtol=2e-5, atol=0)
    assert rotary_amplitude(shape.rope_scaling) == pytest.approx(reference_amplitude(shape), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "none"])
def test_frequencies_are_those_of_transformers_bit_for_bit(name: str) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, shape = SCALINGS[name], model(SCALINGS[name])
    of_kind = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "attention_factor"),
    }
    parameters = {
        "rope_type": scaling.kind,
        "rope_theta": shape.rope_base,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_length,
        **{key: getattr(scaling, key) for key in of_kind[scaling.kind]},
    }
    config = LlamaConfig(head_dim=shape.head_size, max_position_embeddings=1 << 17, rope_parameters=parameters)
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[scaling.kind](config)
    assert torch.equal(rotary_frequencies(shape), frequencies)
    assert rotary_amplitude(scaling) == amplitude


def test_slow_pairs_are_divided_and_fast_ones_kept() -> None:
    for scaling in (LLAMA3, YARN):
        plain, scaled = rotary_frequencies(model(RopeScaling())), rotary_frequencies(model(scaling))
        assert scaled[0] == plain[0]
        assert scaled[-1] == plain[-1] / scaling.factor


def test_tables_have_the_amplitude() -> None:
    shape = model(replace(YARN, attention_factor=1.25))
    cosines, sines = rotary_tables(rotary_frequencies(shape), 5, shape.rope_scaling)
    torch.testing.assert_close((cosines.square() + sines.square()).sqrt(), torch.full_like(cosines, 1.25))
