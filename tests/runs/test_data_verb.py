"""`pretrain data` as a user types it: what it prints, and its exit codes."""

import json
import shutil

import pytest


def test_a_dataset_is_shown_counted_and_found_whole(place):
    shown = place.command("data", "inspect", str(place.dataset), "--samples", "2", "--split", "validation")
    assert shown.returncode == 0 and shown.stdout.count("--- validation sample") == 2
    counted = place.command("data", "stats", str(place.dataset))
    assert json.loads(counted.stdout)["splits"]["train"]["samples"] > 0
    verified = place.command("data", "verify", str(place.dataset))
    assert (verified.returncode, verified.stdout) == (0, f"{place.dataset}: whole\n")


def test_damage_is_named_with_exit_code_1(place, tmp_path):
    damaged = shutil.copytree(place.dataset, tmp_path / "damaged")
    content = bytearray((damaged / "train-00000.tar").read_bytes())
    content[-700] ^= 1
    (damaged / "train-00000.tar").write_bytes(content)
    done = place.command("data", "verify", str(damaged))
    assert done.returncode == 1
    assert (
        done.stdout == f"{damaged}/train-00000.tar: its content differs from what was written (sha256 does not fit)\n"
    )


def test_a_dataset_goes_to_megatron_and_back_and_is_joined(place, tmp_path):
    out, back, both = (str(tmp_path / name) for name in ("out", "back", "both"))
    written = place.command("data", "convert", str(place.dataset), out, "--to", "megatron")
    train = json.loads(written.stdout)["train"]
    assert written.returncode == 0 and (tmp_path / "out" / "train.bin").stat().st_size == 2 * train["tokens"]
    settings = (f"tokenizer.path={out}/tokenizer.model", "model.seq_length=32", "data.validation_min_bytes=3000")
    packed = place.command("data", "convert", f"{out}/train", back, "--to", "packed", *settings)
    splits = json.loads(packed.stdout)["splits"]
    assert sum(split["documents"] for split in splits.values()) == train["documents"]
    merged = place.command("data", "merge", str(place.dataset), back, "--into", both)
    assert (
        merged.returncode == 0 and json.loads(merged.stdout)["splits"]["train"]["samples"] > splits["train"]["samples"]
    )
    again = place.command("data", "convert", str(place.dataset), out, "--to", "megatron", "data.name=x")
    assert again.returncode == 2 and "data.name=x: --to megatron takes all it needs" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "nowhere"], "nowhere: not prepared"),
        (["inspect", "nowhere", "--samples", "0"], "'0' is not a number above 0"),
        (["look", "nowhere"], "invalid choice: 'look'"),
        (["merge", "nowhere", "--into", "x"], "nowhere: not prepared"),
        (
            ["convert", "nowhere", "x", "--to", "packed", "tokenizer.path=t"],
            "nowhere.bin: cannot be read (No such file",
        ),
        (["stats", "nowhere", "data.name=x"], "unrecognized arguments: data.name=x"),
    ],
)
def test_mistakes_are_told_with_exit_code_2(place, words, message):
    done = place.command("data", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
