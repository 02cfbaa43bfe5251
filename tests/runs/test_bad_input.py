"""A mistake gives one clear message and exit code 2, and leaves nothing behind."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from data_pipeline.config_text import written
from pretrain.exit_codes import ExitCode
from tests.support.corpus import make_texts, write_folder, write_jsonl
from tests.support.runs import Workplace, files_below, user_error


def refused(
    done: subprocess.CompletedProcess[str], place: Workplace, *words: str, code: ExitCode = ExitCode.MISTAKE
) -> str:
    """The message, which has these words; the folder is as empty as before."""
    message = user_error(done, code)
    for word in words:
        assert word in message
    assert not list(place.folder.iterdir())
    return message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1e-3", ["optim.lrr=1e-3", "unknown key", "did you mean optim.lr?"]),
        ("+modle.seq_length=8", ["modle.seq_length=8: unknown key\n  hint: did you mean model.seq_length?"]),
        ("model=gpt5", ["model=gpt5: must be the name of one of its files", "gpt3_125m"]),
        ("train.max_steps=many", ["train.max_steps=many: must be an integer"]),
        ("train.max_steps=1.5", ["train.max_steps=1.5: must be an integer"]),
        ("engine.zero_stage=4", ["engine.zero_stage=4: must be 0, 1, 2 or 3"]),
        ("model.num_heads=5", ["model.num_heads=5: does not divide model.hidden_size=32\n  hint: choose 2, 4 or 8"]),
        (
            "train.global_batch_size=9",
            ["train.global_batch_size=9: must be a multiple of train.micro_batch_size=2", "choose 8 or 10"],
        ),
        ("optim.lr=-1", ["optim.lr=-1.0: must be greater than 0"]),
        ("model.seq_length=64", ["model.seq_length=64", "was packed for 32 tokens", "set model.seq_length=32"]),
        ("data.path=nowhere", ["data.path=nowhere: not prepared", "run `pretrain prepare` with the same settings"]),
    ],
)
def test_train_refuses_before_it_makes_the_run_folder(place, override, words):
    refused(place.train("refused", override), place, *words)


def test_a_model_too_large_for_the_disk_is_refused_at_the_start(place):
    done = place.train("refused", "model.hidden_size=1048576")
    words = ("run.dir='runs/refused': no space left: one checkpoint takes", "GiB are free")
    refused(done, place, *words, code=ExitCode.REFUSED)


def test_all_mistakes_are_reported_at_once(place):
    message = refused(place.train("refused", "optim.lr=-1", "model.num_heads=5", "engine.cpu_threads=0"), place)
    keys = {line.split("=")[0].strip() for line in message.splitlines()[1:] if "hint:" not in line}
    assert keys == {"engine.cpu_threads", "model.num_heads", "optim.lr"}


def test_wandb_online_needs_a_key(place):
    home = place.folder.parent / "home"
    home.mkdir()
    done = place.train("refused", "tracking.wandb=online", env={"HOME": str(home), "NETRC": str(home / "netrc")})
    refused(done, place, "tracking.wandb=online", "run `wandb login`, set WANDB_API_KEY, or choose tracking=wandb_off")


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train-00000.tar", lambda old: old[: len(old) // 2], ["bytes, the manifest says"]),
        ("validation-00000.tar", lambda old: old[:-512], ["bytes, the manifest says"]),
        ("train.index.npy", lambda old: old[:-8] + b"\1" * 8, ["its content differs from what `prepare` wrote"]),
        ("manifest.json", lambda old: old.replace(b'"seq_length": 32', b'"seq_length": 31'), ["was changed after it"]),
        ("manifest.json", lambda old: old[: len(old) // 2], ["is not complete JSON"]),
        ("train-00000.tar", None, ["missing"]),
    ],
)
def test_train_refuses_a_damaged_dataset(place, dataset, tmp_path, name, damage, words):
    copy = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    if damage is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(damage((copy / name).read_bytes()))
    refused(place.train("refused", f"data.path={copy}"), place, str(copy / name), *words, "prepare.overwrite=true")


@pytest.mark.parametrize(
    ("content", "override", "words"),
    [
        (b"", "data.text_key=text", ["contain no text (1 files)", "data.inputs=[my.txt]"]),
        (b'{"text": "few words"}\n' * 3, "data.text_key=text", ["hold out all text", "give more text"]),
        (
            b'{"text": "fine"}\n{"body": "x"}\n',
            "data.text_key=text",
            ["in.jsonl:2: has no key 'text'", "data.text_key"],
        ),
        (b'{"text": "fine"}\n{"text": \n', "data.text_key=text", ["in.jsonl:2: not a JSON object"]),
        (
            b'{"text": "fine"}\n{"text": "\xff"}\n',
            "data.text_key=text",
            ["in.jsonl:2: not UTF-8 at byte 27 (0xff", "data.encoding_errors=skip"],
        ),
        (b"", "data.inputs=[missing.txt]", ["missing.txt"]),
        (b"", "data.inputs=[]", ["data.inputs"]),
    ],
)
def test_prepare_refuses_text_that_it_cannot_use(place, tmp_path, content, override, words):
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    done = place.prepare(f"data.inputs=[{source}]", "data.path=made/dataset", override)
    refused(done, place, *words)


def test_prepare_refuses_a_corpus_too_small_for_one_sample(place, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(60))
    done = place.prepare(f"data.inputs=[{source}]", "data.path=made/dataset", "model.seq_length=1000000")
    refused(done, place, "the train split has", "too few for one sample of model.seq_length=1000000", "give more text")


def test_text_that_is_not_utf8_is_named_or_counted(place, tmp_path):
    folder = write_folder(tmp_path / "texts", make_texts(60))
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait")
    wanted = [f"data.inputs=[{folder}]", "data.path=made/dataset"]
    refused(place.prepare(*wanted), place, "texts/latin.txt: not UTF-8 at byte 3 (0xe9")
    done = place.prepare(*wanted, "data.encoding_errors=skip")
    assert done.returncode == 0, done.stderr
    assert "dropped, by reason: {'not_utf8': 1}" in done.stderr
    manifest = json.loads((place.folder / "made/dataset/manifest.json").read_text())
    assert manifest["manifest"]["corpus"]["dropped"] == {"not_utf8": 1}


def test_a_run_continues_only_with_its_own_data(shared, finished_run, place, tmp_path):
    run = Path(shutil.copytree(finished_run, place.run_dir("finished")))
    other = Workplace(tmp_path / "other", tmp_path / "other" / "dataset")
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(60, seed=7))
    assert other.prepare(f"data.inputs=[{source}]").returncode == 0
    before = files_below(run)
    done = place.train("finished", "model.hidden_dropout=0.1", f"data.path={other.dataset}")
    message = user_error(done)
    assert "checkpoints/step-00000016: tokenizer fingerprint" in message
    assert "the run was trained on other data\n  hint: set data.path to the old dataset (" in message
    assert message.endswith("to continue with other data, add run.accept_changes=[data,tokenizer]")
    assert files_below(run) == before

    accepted = ("run.accept_changes=[data,tokenizer]", "train.max_steps=17")
    done = place.train("finished", "model.hidden_dropout=0.1", f"data.path={other.dataset}", *accepted)
    assert done.returncode == 0, done.stderr
    changes = json.loads((run / "changes.jsonl").read_text())
    assert changes["step"] == 16 and {"data", "tokenizer", "data.path"} <= changes["changes"].keys()
    assert f"changed after step 16: data: {written(changes['changes']['data'][0])} there" in done.stderr
    manifest = json.loads((run / "checkpoints/step-00000017/manifest.json").read_text())
    assert manifest["dataset_digest"] == changes["changes"]["data"][1]


def test_a_run_folder_made_by_another_configuration_is_refused(shared, finished_run):
    before = {name: (finished_run / name).stat().st_mtime_ns for name in files_below(finished_run)}
    done = shared.train("finished", "optim.lr=1e-3", "data.document_mask=true", "evaluation.every_steps=1")
    message = user_error(done)
    assert "run.dir='runs/finished' was made by another configuration:" in message
    changed = [line.strip() for line in message.splitlines() if line.startswith("  ") and "hint:" not in line]
    assert changed == [
        "data.document_mask: false there, true now",
        "model.hidden_dropout: 0.1 there, 0.0 now",
        "optim.lr: 0.003 there, 0.001 now",
    ]
    assert "hint: to continue with the new values, add run.accept_changes=" in message
    assert "[data.document_mask,model.hidden_dropout,optim.lr]" in message
    assert {name: (finished_run / name).stat().st_mtime_ns for name in files_below(finished_run)} == before


def test_prepare_on_a_full_disk_keeps_nothing(place, small_disk, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(200))
    done = place.prepare(f"data.inputs=[{source}]", f"data.path={small_disk}/sets/dataset")
    refused(
        done,
        place,
        f"data.path={small_disk}/sets/dataset: no space left on the disk; nothing unfinished was kept",
        code=ExitCode.REFUSED,
    )
    assert not list(small_disk.iterdir())


def test_train_on_a_small_disk_is_refused_before_it_begins(place, small_disk):
    done = place.train("refused", f"run.dir={small_disk}/run")
    refused(
        done, place, f"run.dir='{small_disk}/run': no space left: one checkpoint takes 0.00 GiB", code=ExitCode.REFUSED
    )
    assert not list(small_disk.iterdir())


def test_a_full_disk_fails_only_the_last_checkpoint(place, small_disk):
    run = small_disk / "run"
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    done = place.train("full", f"run.dir={run}", "checkpoint.every_steps=2", "checkpoint.keep_last=16")
    fault = f"could not write a checkpoint in {run}/checkpoints: rank 0: no space left on the disk; earlier checkpoints"
    assert (
        f"NOT saved: {fault} are untouched, training continues and tries again at the next save that is due, in 60 s"
        in done.stderr
    )
    assert (
        f"{fault} are untouched\n  hint: make room or repair the disk, then run the same command again"
        in user_error(done, ExitCode.REFUSED)
    )
    assert "step 16/16" in done.stderr
    assert (run / "checkpoints" / "step-00000002" / "manifest.json").exists()
