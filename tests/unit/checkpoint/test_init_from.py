"""Whose weights a run may begin with."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards.manifest import TokenizerRecord
from pretrain.checkpoint.init_from import find_initial
from pretrain.training.start import find_initial_weights, initial_weights_finder
from tests.support.checkpoints import change_manifest, write_manifest
from tests.support.models import run_config

TOKENIZER = TokenizerRecord(
    file="tokenizer.model", kind="sentencepiece", vocab_size=91, eod_id=2, fingerprint="abc", settings_file=""
)
OLD = run_config("llama", "model.num_query_groups=null")


@pytest.fixture
def old(tmp_path):
    """The folder of a run with two checkpoints, without tensors."""
    for step in (4, 8):
        folder = tmp_path / "old" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_manifest(folder, step, config=asdict(OLD), vocab_size=91, tokenizer_fingerprint="abc")
        (folder / "tensors.json").write_text("{}")
    return tmp_path / "old"


def found(old, run_dir, *overrides, tokenizer=TOKENIZER):
    return find_initial(
        str(old), run_dir, run_config("llama", "model.num_query_groups=null", *overrides).model, tokenizer
    )


def test_init_from_takes_the_newest_of_a_run_or_a_checkpoint(old, tmp_path):
    assert found(old, tmp_path / "new").step == 8
    assert found(old / "checkpoints" / "step-00000004", tmp_path / "new").step == 4


def test_a_run_with_its_own_checkpoint_ignores_init_from(old, tmp_path):
    (tmp_path / "new/checkpoints/step-00000002.partial").mkdir(parents=True)
    assert found(old, tmp_path / "new") is not None
    (tmp_path / "new/checkpoints/step-00000002").mkdir()
    assert found(old, tmp_path / "new") is None


def test_initial_weights_are_checked_if_own_ones_are_damaged(old, tmp_path):
    (tmp_path / "new/checkpoints/step-00000002").mkdir(parents=True)
    own = (f"run.init_from={old}", f"run.dir={tmp_path}/new", "model.num_query_groups=1")
    config, dataset = run_config("llama", *own), SimpleNamespace(manifest=SimpleNamespace(tokenizer=TOKENIZER))
    assert find_initial_weights(config, dataset) is None
    with pytest.raises(UserError, match=r"model\.num_query_groups=1: the weights in "):
        initial_weights_finder(config, dataset)()


def test_another_rotary_base_is_taken_with_a_warning(old, tmp_path, caplog):
    found(old, tmp_path / "new")
    assert caplog.text == ""
    found(old, tmp_path / "new", "model.rope_base=500000")
    assert "model.rope_base=500000: the weights in" in caplog.text


SCALED = ("model.rope_scaling.kind=yarn", "model.rope_scaling.factor=2", "model.rope_scaling.original_length=16")


def test_a_longer_context_is_taken_with_a_warning(old, tmp_path, caplog):
    found(old, tmp_path / "new", "model.seq_length=32", *SCALED)
    assert "model.rope_scaling={kind: yarn, factor: 2.0, original_length: 16," in caplog.text
    caplog.clear()
    found(old, tmp_path / "new", "model.seq_length=32")
    assert "model.seq_length=32: the weights in" in caplog.text
    assert "16 tokens and the same frequencies" in caplog.text
    caplog.clear()
    found(old, tmp_path / "new", "model.seq_length=8")
    assert caplog.text == ""


def test_experts_are_compared_without_what_balances_them(tmp_path, old):
    experts = ("model.experts.count=4", "model.experts.ffn_hidden_size=16")
    with pytest.raises(UserError, match=r"the weights in .* are of a model with experts=\{\}"):
        found(old, tmp_path / "new", *experts)
    for step in (4, 8):
        config = asdict(run_config("llama", "model.num_query_groups=null", *experts))
        change_manifest(
            old / f"checkpoints/step-{step:08d}", lambda manifest, config=config: manifest.update(config=config)
        )
    assert found(old, tmp_path / "new", *experts, "model.experts.bias_rate=0.1").step == 8
    with pytest.raises(UserError, match=r"model\.experts=\{count: 4, topk: 1"):
        found(old, tmp_path / "new", *experts, "model.experts.topk=1")


def test_keys_that_keep_the_weights_valid_may_change(old, tmp_path):
    changes = ("model.hidden_dropout=0.3", "model.seq_length=32", "model.rope_base=500000", "model.vocab_multiple_of=8")
    heads = OLD.model.num_heads
    assert found(old, tmp_path / "new", *changes, f"model.num_query_groups={heads}") is not None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.ffn_hidden_size=64"], ["model.ffn_hidden_size=64: the weights in ", "with ffn_hidden_size=48"]),
        (
            ["model.norm=layernorm", "model.num_layers=3"],
            ["model.norm=layernorm", "norm=rmsnorm", "model.num_layers=3", "num_layers=2"],
        ),
        (["model.num_query_groups=1"], ["model.num_query_groups=1", f"num_query_groups={OLD.model.num_heads}"]),
    ],
)
def test_another_shape_is_refused_with_both_values(old, tmp_path, overrides, words):
    with pytest.raises(UserError) as error:
        found(old, tmp_path / "new", *overrides)
    assert not [word for word in words if word not in str(error.value)], str(error.value)


def test_learned_positions_fix_the_length(old, tmp_path):
    learned = ("model.position=learned",)
    newest = old / "checkpoints" / "step-00000008"
    change_manifest(newest, lambda manifest: manifest["config"]["model"].update(position="learned"))
    assert found(old, tmp_path / "new", *learned) is not None
    with pytest.raises(UserError, match=r"model\.seq_length=32: .*seq_length=16"):
        found(old, tmp_path / "new", *learned, "model.seq_length=32")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vocab_size": 92}, "a vocabulary of 91, the data has 92\n  hint: prepare this text"),
        ({"fingerprint": "xyz"}, "tokenizer abc, the data was prepared with xyz\n  hint: prepare this text"),
    ],
)
def test_another_tokenizer_is_refused_with_the_remedy(old, tmp_path, changed, words):
    with pytest.raises(UserError, match=words):
        found(old, tmp_path / "new", tokenizer=replace(TOKENIZER, **changed))


def test_without_a_checkpoint_init_from_is_an_error(old, tmp_path):
    with pytest.raises(
        UserError, match="no such folder\n  hint: give a run folder, a checkpoint or a Hugging Face folder"
    ):
        found(tmp_path / "nowhere", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        found(tmp_path / "empty", tmp_path / "new")
