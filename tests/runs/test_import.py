"""A model of transformers becomes a run, and new runs start with its weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.runs import train_records, user_error

LLAMA = ("model=tiny_llama", "model.num_query_groups=1")


@pytest.fixture(scope="module")
def folder(shared, plain_run):
    done = shared.command("export", f"run={plain_run}", "into=exported", "check=false")
    assert done.returncode == 0, done.stderr
    return shared.folder / "exported"


@pytest.fixture(scope="module")
def imported(shared, folder):
    done = shared.command("import", f"folder={folder}", "run=runs/imported")
    assert done.returncode == 0, done.stderr
    return shared.run_dir("imported")


def test_the_imported_run_writes_the_same_text(shared, plain_run, imported):
    words = ("prompt=the", "max_new_tokens=8", "temperature=0")
    ours = shared.generate(f"run={plain_run}", *words)
    assert shared.generate(f"run={imported}", *words).stdout == ours.stdout
    assert ours.returncode == 0, ours.stderr


def test_both_ways_of_starting_give_the_same_loss(place, plain_run, folder, imported):
    losses = []
    for name, origin in (("a", plain_run), ("b", folder), ("c", imported)):
        words = (*LLAMA, f"run.init_from={origin}", "train.max_steps=2", "lr_schedule.warmup_steps=1")
        done = place.train(name, *words)
        assert done.returncode == 0, done.stderr
        losses.append([record["loss"] for record in train_records(place.run_dir(name)).values()])
    assert losses[0] == losses[1] == losses[2]


def test_rows_beyond_the_tokenizer_stay_in_the_softmax(place, folder):
    wider = shutil.copytree(folder, place.folder / "wider")
    config = json.loads((wider / "config.json").read_text())
    rows = config["vocab_size"] + 5
    (wider / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    tensors = load_file(wider / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = (
            tensors[name].new_zeros(rows, tensors[name].shape[1]).index_copy_(0, torch.arange(rows - 5), tensors[name])
        )
    save_file(tensors, wider / "model.safetensors")
    words = (*LLAMA, f"run.init_from={wider}", "train.max_steps=1", "lr_schedule.warmup_steps=1")
    message = user_error(place.train("short", *words))
    assert f"hint: set model.vocab_size={rows}" in message
    done = place.train("wide", *words, f"model.vocab_size={rows}")
    assert done.returncode == 0, done.stderr
    done = place.train("plain", *LLAMA, f"run.init_from={folder}", *words[3:])
    (wide,), (plain,) = (train_records(place.run_dir(name)).values() for name in ("wide", "plain"))
    assert wide["loss"] > plain["loss"]  # five more logits of 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["folder=nowhere", "run=runs/x"], "folder=nowhere: no such folder"),
        (["run=runs/x"], "folder=???: a value must be given"),
        (["folder=.", "run=."], "run=.: exists already"),
        (["folder=.", "run=runs/x"], "config.json: cannot be read: No such file or directory"),
    ],
)
def test_import_refuses_what_it_cannot_use(place, overrides, words):
    assert words in user_error(place.command("import", *overrides))
    assert list(place.folder.iterdir()) == []


def test_the_tokenizer_of_another_model_is_refused(place, folder):
    other = shutil.copytree(folder, place.folder / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    tensors = load_file(other / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:100].clone()
    save_file(tensors, other / "model.safetensors")
    message = user_error(place.command("import", "folder=other", "run=runs/x"))
    assert "tokens, and the model predicts only 100" in message


def test_another_rotary_base_is_not_taken_unseen(place, folder):
    message = user_error(place.train("x", *LLAMA, f"run.init_from={folder}", "model.rope_base=500000"))
    assert "model.rope_base=500000.0: the weights in" in message
