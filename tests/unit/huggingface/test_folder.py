"""A folder that is not whole, or of a model that is computed otherwise, is refused before any weight is read."""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretrain.config.errors import UserError
from pretrain.huggingface.architectures import config_json
from pretrain.huggingface.folder import INDEX, SINGLE, ForeignWeights
from pretrain.huggingface.weights import units
from tests.unit.huggingface.test_weights import SHAPES

VOCAB = 40


def write(folder: Path, shape: str = "llama", files: int = 1, **changes: object) -> dict[str, torch.Tensor]:
    """A whole folder; returns its tensors by our names."""
    model = SHAPES[shape]
    folder.mkdir(exist_ok=True)
    ours, theirs = {}, {}
    for unit in units(model, VOCAB):
        tensors = [torch.randn(size) for size in unit.our_shapes]
        ours |= dict(zip(unit.ours, tensors, strict=True))
        theirs |= {name: t.contiguous() for name, t in zip(unit.theirs, unit.to_theirs(tensors), strict=True)}
    config = config_json(model, vocab_size=VOCAB, end_token=0, dtype="float32") | changes
    (folder / "config.json").write_text(json.dumps(config))
    save(folder, theirs, files)
    return ours


def save(folder: Path, tensors: dict[str, torch.Tensor], files: int) -> None:
    if files == 1:
        save_file(tensors, folder / SINGLE)
        return
    places = {name: f"model-{i % files + 1:05d}-of-{files:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        ForeignWeights(folder)
    return str(error.value)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("files", [1, 3])
def test_every_weight_is_read_under_our_name(shape, files, tmp_path):
    ours = write(tmp_path, shape, files)
    weights = ForeignWeights(tmp_path)
    assert weights.shapes.keys() == ours.keys()
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in ours.items())


def test_half_precision_becomes_fp32(tmp_path):
    ours = write(tmp_path)
    stored = {name: tensor.bfloat16() for name, tensor in tensors_of(tmp_path).items()}
    save(tmp_path, stored, 1)
    name = "embedding.word_embeddings.weight"
    found = ForeignWeights(tmp_path).read(name)
    assert found.dtype == torch.float32
    assert torch.equal(found, ours[name].bfloat16().float())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / SINGLE)


def test_gpt2_without_its_head_has_no_prefix(tmp_path):
    ours = write(tmp_path, "gpt2")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors_of(tmp_path).items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save(tmp_path, bare, 1)
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    assert torch.equal(ForeignWeights(tmp_path).read(name), ours[name])


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path, files=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such file, which" in refusal(tmp_path)


def test_a_cut_file_is_named(tmp_path):
    write(tmp_path)
    content = (tmp_path / SINGLE).read_bytes()
    for length in (4, 200, len(content) - 4):
        (tmp_path / SINGLE).write_bytes(content[:length])
        assert f"{SINGLE}: is not a whole safetensors file" in refusal(tmp_path)


def test_pickled_weights_are_refused_and_not_run(tmp_path):
    write(tmp_path)
    (tmp_path / SINGLE).unlink()
    touched = tmp_path / "touched"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (touched,)

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "pickled weights are not read, because a pickle can run code" in refusal(tmp_path)
    assert not touched.exists()


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    write(tmp_path, files=2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../other.safetensors")
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "must name a file of this folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 3}, "has no tensor model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight has no place in LlamaForCausalLM"),
        ({"intermediate_size": 8}, "gate_proj.weight is"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.rope_type=llama3"),
        ({"architectures": ["MambaForCausalLM"]}, "architectures=['MambaForCausalLM']: must be one of"),
        ({"vocab_size": "many"}, "vocab_size=many: must be a whole number of at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: must be a whole number"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type=linear: must be 'default'"),
        ({"rope_parameters": {"type": "linear", "factor": 2.0}}, "rope_parameters.rope_type=linear"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "must be one set of parameters"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5: must be 1"),
        ({"rope_parameters": "linear"}, "rope_parameters=linear: must be an object"),
        ({"num_hidden_layers": 10**12}, "has no tensor model.layers.2."),
        ({"eos_token_id": "</s>"}, "eos_token_id=</s>: must be an ID"),
    ],
)
def test_another_model_than_described_is_refused(change, words, tmp_path):
    write(tmp_path, **change)
    assert words.replace("['", "[").replace("']", "]") in refusal(tmp_path).replace("['", "[").replace("']", "]")


WRONG = (None, True, 0, -1, 1.5, 10**400, math.nan, "x", [], [1], {}, {"a": {}})


@pytest.mark.parametrize("shape", SHAPES)
def test_any_wrong_value_is_read_or_refused_by_key(shape, tmp_path):
    write(tmp_path, shape)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in (*config, "rope_scaling", "partial_rotary_factor", "layer_types"):
        for value in WRONG:
            (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
            try:
                ForeignWeights(tmp_path)
            except UserError as error:
                assert key in str(error) or "describes" in str(error) or "tensor" in str(error), (key, value)


def test_rope_scaling_stands_for_all_rope_parameters(tmp_path):
    write(tmp_path, rope_theta=7.0, rope_parameters={"rope_theta": 8.0}, rope_scaling={"rope_theta": 9.0})
    assert ForeignWeights(tmp_path).model.rope_base == 9.0


@pytest.mark.parametrize(("given", "found"), [(7, 7), ([8, 9], 8), (None, None), ([], None)])
def test_the_first_end_token_ends_documents(given, found, tmp_path):
    write(tmp_path, eos_token_id=given)
    assert ForeignWeights(tmp_path).end_token == found


def test_an_index_must_name_the_file_of_each_tensor(tmp_path):
    write(tmp_path, files=2)
    whole = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    name, *others = whole
    for places in ({other: whole[other] for other in others}, whole | {name: whole[others[0]]}):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
        assert f"{INDEX}: does not name {whole[name]} as the file of {name}" in refusal(tmp_path)


def test_models_of_one_shape_have_other_digests(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", files=2)
    one, two = ForeignWeights(tmp_path / "a").digest(), ForeignWeights(tmp_path / "b").digest()
    save(tmp_path / "a", {name: tensor + 1 for name, tensor in tensors_of(tmp_path / "a").items()}, 1)
    assert len({one, two, ForeignWeights(tmp_path / "a").digest()}) == 3


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size"])
def test_a_config_without_a_key_is_refused(key, tmp_path):
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert key in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / SINGLE).unlink()
    assert f"has no {SINGLE} and no {INDEX}" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert "config.json: is not valid JSON" in refusal(tmp_path)
