"""The table between our tensors and those of a Hugging Face folder, and the shapes in config.json."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.huggingface.architectures import ARCHITECTURES, architecture_of, config_json
from pretrain.huggingface.foreign_config import model_of
from pretrain.huggingface.weights import units
from pretrain.model.size import count_parameters

REFUSED = {"llama_3.1_8b": "model.rope_scaling.kind=llama3", "smollm3_3b": "model.no_rope_every=4"} | {
    name: f"model.experts.count={count}"
    for name, count in (("tiny_experts", 8), ("mixtral_8x7b", 8), ("qwen3_30b_a3b", 128), ("deepseek_v3_like", 256))
}
"""Presets that no config.json is written for, and why."""
PRESETS = sorted(
    path.stem for path in Path(__file__).parents[3].joinpath("conf/model").glob("*.yaml") if path.stem not in REFUSED
)
VOCAB = 1000
TINY = load_run_config(["model=tiny", "model.num_layers=2", "model.hidden_size=48", "model.num_heads=6"]).model
LLAMA = dataclasses.replace(
    TINY, position="rope", norm="rmsnorm", activation="swiglu", bias=False, tie_embeddings=False, num_query_groups=2
)
SHAPES = {
    "gpt2": TINY,
    "gpt2-untied": dataclasses.replace(TINY, tie_embeddings=False),
    "llama": LLAMA,
    "llama-bias": dataclasses.replace(LLAMA, bias=True, tie_embeddings=True),
    "llama-head": dataclasses.replace(LLAMA, head_dim=16, num_query_groups=None),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
    "starcoder2": dataclasses.replace(LLAMA, norm="layernorm", activation="gelu", bias=True),
    "starcoder2-no-bias": dataclasses.replace(LLAMA, norm="layernorm", activation="gelu"),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_units_hold_each_element_once(preset):
    model = load_run_config([f"model={preset}"]).model
    table = list(units(model, VOCAB))
    names = [name for unit in table for name in unit.ours]
    assert len(set(names)) == len(names)
    ours = sum(torch.Size(shape).numel() for unit in table for shape in unit.our_shapes)
    theirs = sum(torch.Size(shape).numel() for unit in table for shape in unit.their_shapes)
    assert ours == theirs == count_parameters(model, VOCAB).total


@pytest.mark.parametrize("preset", PRESETS)
def test_transformers_has_the_same_names_and_shapes(preset):
    transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
    model = dataclasses.replace(load_run_config([f"model={preset}"]).model, num_layers=2)
    config = config_json(model, vocab_size=VOCAB, end_token=0, dtype="float32")
    described = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        theirs = getattr(transformers, config["architectures"][0])(described)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.named_parameters()}
    table = units(model, VOCAB)
    assert shapes == {name: shape for unit in table for name, shape in zip(unit.theirs, unit.their_shapes, strict=True)}


@pytest.mark.parametrize("preset", REFUSED)
def test_a_model_without_a_class_is_refused_by_its_keys(preset):
    with pytest.raises(ConfigError, match=REFUSED[preset]):
        architecture_of(load_run_config([f"model={preset}"]).model)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_round_trip_changes_no_bit(shape):
    for unit in units(SHAPES[shape], VOCAB):
        ours = [torch.randn(size) for size in unit.our_shapes]
        theirs = [tensor.contiguous() for tensor in unit.to_theirs(ours)]
        assert [tuple(tensor.shape) for tensor in theirs] == list(unit.their_shapes)
        back = unit.to_ours(theirs)
        assert all(torch.equal(one, other) for one, other in zip(ours, back, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_config_json_describes_the_model(shape):
    model = SHAPES[shape]
    config = config_json(model, vocab_size=VOCAB, end_token=0, dtype="float32")
    read = model_of(config, model.name)
    same = {"num_query_groups": model.kv_heads, "head_dim": model.head_size, "vocab_multiple_of": 1}
    assert dataclasses.replace(read, **{key: same[key] for key in same}) == dataclasses.replace(model, **same)


@pytest.mark.parametrize("shape", ["llama", "qwen3", "starcoder2"])
def test_both_places_have_the_rotary_base(shape):
    """transformers 5 reads one, earlier versions and most other readers the other."""
    model = dataclasses.replace(SHAPES[shape], rope_base=5e5)
    config = config_json(model, vocab_size=VOCAB, end_token=0, dtype="float32")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    assert config["dtype"] == config["torch_dtype"] == "float32"


def test_each_combination_has_a_class_or_a_refusal():
    """The refusal names each field that differs, with the value that the nearest class has."""
    found = set()
    fields = {
        "position": ("learned", "rope"),
        "norm": ("layernorm", "rmsnorm"),
        "activation": ("gelu", "swiglu"),
        "bias": (False, True),
        "qk_norm": (False, True),
        "num_query_groups": (None, 2),
        "head_dim": (None, 16),
    }
    for values in itertools.product(*fields.values()):
        chosen = dict(zip(fields, values, strict=True))
        model = dataclasses.replace(TINY, **chosen)
        try:
            found.add(architecture_of(model).name)
        except ConfigError as error:
            named = [problem.key.removeprefix("model.") for problem in error.problems]
            assert named and set(named) <= set(chosen)
            nearest = next(known for known in ARCHITECTURES if known.name in str(error))
            cured = {name: nearest.fields.get(name) for name in named}
            assert architecture_of(dataclasses.replace(model, **cured)) is nearest
    assert found == {known.name for known in ARCHITECTURES}


@pytest.mark.parametrize(
    ("shape", "change", "key"),
    [
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.rope_type"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.rope_type"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("starcoder2", {"sliding_window": 4096}, "sliding_window"),
        ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("llama", {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "architectures"),
    ],
)
def test_a_difference_is_refused_by_its_key(shape, change, key):
    config = config_json(SHAPES[shape], vocab_size=VOCAB, end_token=0, dtype="float32") | change
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        model_of(config, "foreign")
