"""`pretrain export`: a complete folder that transformers loads, or one error and nothing."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from pretrain.config.commands import ExportConfig
from tests.support.runs import ROOT, user_error


@pytest.fixture(scope="module")
def exported(shared, plain_run):
    done = shared.command("export", f"run={plain_run}", "into=out", "shard_bytes=20_000", "workers=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\n"
    return shared.folder / "out"


def test_transformers_loads_the_folder_alone(exported, plain_run):
    transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
    from pretrain.config.load import read_run_config
    from pretrain.run.tokenizer import tokenizer_of

    ours = tokenizer_of(plain_run, read_run_config(plain_run / "config.yaml").data)
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    text = "the cat </s>  naïve 日本\n"
    assert theirs(text)["input_ids"] == ours.encode(text)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    inputs = theirs(["the", "the old man"], return_tensors="pt", padding=True, padding_side="left")
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[0] == 2


def test_an_export_can_be_fine_tuned_as_a_classifier(exported):
    pytest.importorskip("transformers", reason="needs the extra `export`")
    command = [sys.executable, ROOT / "docs/examples/classify.py", exported]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    accuracy, base = map(float, re.findall(r"(?:others|rate) ([0-9.]+[0-9])", done.stdout))
    assert base == 0.5
    assert accuracy > base + 0.15


def test_the_record_has_the_differences_of_logits(exported):
    record = json.loads((exported / "export.json").read_text())
    check = record["check"]
    assert 0 <= check["largest_difference"] <= 1e-5
    assert check["same_argmax"] == 1.0
    assert abs(check["loss_difference"]) < 1e-6
    weights = [path.name for path in exported.glob("model-*.safetensors")]
    assert sorted(weights) == sorted(record["files"]) and len(weights) > 2
    assert record["checkpoint"]["step"] == 16
    assert record["tokenizer"]["with_other_ids"] == 0 and record["tokenizer"]["texts"] > 500


def test_the_card_says_what_a_reader_must_know(exported):
    card = (exported / "README.md").read_text()
    for words in ("LlamaForCausalLM", "adds none", "| tokens | 4,096 |", "| validation loss (nats a token) |"):
        assert words in card


def test_16_bit_weights_take_half_the_bytes(shared, plain_run, exported):
    done = shared.command("export", f"run={plain_run}", "into=half", "dtype=bfloat16", "check=false")
    assert done.returncode == 0, done.stderr
    size = (shared.folder / "half/model.safetensors").stat().st_size
    whole = sum(path.stat().st_size for path in exported.glob("*.safetensors"))
    assert size == pytest.approx(whole / 2, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run=runs/nowhere", "into=x"], "run=runs/nowhere: no such folder"),
        (["run=.", "into=x"], "config.yaml: no such file"),
        (["run=.", "into=.", "workers=0"], "workers=0: must be at least 1"),
        (["run=.", "into=."], "into=.: exists already\n  hint: name a new folder, or remove this one"),
        (["run=."], "into=???: a value must be given"),
        (["run=.", "into=x", "dtype=int8"], "dtype=int8: must be float32, bfloat16 or float16"),
    ],
)
def test_export_refuses_what_it_cannot_use(place, overrides, words):
    assert words in user_error(place.command("export", *overrides))


def test_a_model_without_a_class_is_refused_by_its_field(place, plain_run):
    run = shutil.copytree(plain_run, place.run_dir("other"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("norm: rmsnorm", "norm: layernorm"))
    message = user_error(place.command("export", "run=runs/other", "into=out"))
    assert "model.norm=layernorm: no Hugging Face class computes this model: LlamaForCausalLM has 'rmsnorm'" in message
    assert not (place.folder / "out").exists()


def test_a_damaged_checkpoint_is_refused_and_nothing_is_left(place, plain_run):
    run = shutil.copytree(plain_run, place.run_dir("damaged"))
    for path in run.glob("checkpoints/step-*/*.distcp"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    done = place.command("export", "run=runs/damaged", "into=out", "checkpoint=step-00000016", "check=false")
    assert "step-00000016/__0_0.distcp" in user_error(done)
    assert [path.name for path in place.folder.iterdir()] == ["runs"]


def test_a_full_disk_is_one_error(place, plain_run, small_disk):
    (small_disk / "other").write_bytes(bytes(120_000))
    done = place.command("export", f"run={plain_run}", f"into={small_disk}/out", "check=false")
    assert f"{small_disk}/out cannot be written: No space left on device" in user_error(done)
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_a_checkpoint_deleted_meanwhile_gives_way_to_the_newest(tmp_path, plain_run, monkeypatch):
    from pretrain.export import export as module

    run = shutil.copytree(plain_run, tmp_path / "run")
    write, seen = module._write_weights, []

    def deleted_once(folder, config, trained, checkpoint):
        seen.append(checkpoint.step)
        if len(seen) == 1:
            shutil.rmtree(checkpoint.folder)
        return write(folder, config, trained, checkpoint)

    monkeypatch.setattr(module, "_write_weights", deleted_once)
    chosen = {"checkpoint": "latest", "dtype": "float32", "shard_bytes": 1 << 30, "workers": 1, "check": False}
    config = ExportConfig(run=str(run), into=str(tmp_path / "out"), tokenizer=True, **chosen)
    module.export(config)
    assert seen == [16, 12]
    assert json.loads((tmp_path / "out/export.json").read_text())["checkpoint"]["step"] == 12
