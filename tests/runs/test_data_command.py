"""`pretrain data` as a user types it: what it prints, and its exit codes."""

import json
import shutil

import pytest

from pretrain.cli import main


def test_inspect_stats_and_verify_show_a_dataset(place):
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
        done.stdout
        == f"{damaged}/train-00000.tar: its content differs from what was written (its sha256 does not match)\n"
    )


def test_a_dataset_is_converted_to_megatron(place, tmp_path):
    written = place.command("data", "convert", str(place.dataset), str(tmp_path / "out"), "--to", "megatron")
    train = json.loads(written.stdout)["train"]
    assert written.returncode == 0 and (tmp_path / "out" / "train.bin").stat().st_size == 2 * train["tokens"]


def test_convert_takes_overrides_around_its_option(capsys, tmp_path):
    words = ["data", "convert", "nowhere", str(tmp_path / "x"), "model.seq_length=32", "--to", "packed"]
    for name, wanted in (
        ("tokenizer.path=t.json", "nowhere.bin: cannot be read"),
        ("no.key=1", "unknown key"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*words, name])
        assert end.value.code == 2 and wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "which"),
    [
        (["merge", "a", "b", "--into", "URL"], "--into"),
        (["merge", "a", "URL", "--into", "c"], "PART"),
        (["convert", "a", "URL", "--to", "megatron"], "TARGET"),
        (["convert", "URL", "b", "--to", "packed"], "SOURCE"),
    ],
)
@pytest.mark.parametrize(("url", "shown"), [("s3://bucket/x", "s3://bucket/x"), ("http://a:b@c/d", "http://c/d")])
def test_merge_and_convert_take_local_folders_only(capsys, words, which, url, shown):
    with pytest.raises(SystemExit) as end:
        main(["data", *(url if word == "URL" else word for word in words)])
    assert end.value.code == 2
    assert f"argument {which}: {shown}: is a URL, but only local folders are accepted; copy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "nowhere"], "nowhere: not prepared"),
        (["inspect", "nowhere", "--samples", "0"], "'0' is not a number above 0"),
        (["look", "nowhere"], "look: unknown command"),
        (["merge", "nowhere", "--into", "x"], "nowhere: not prepared"),
        (
            ["convert", "nowhere", "x", "--to", "megatron", "data.name=x"],
            "data.name=x: --to megatron takes all it needs",
        ),
        (["stats", "nowhere", "data.name=x"], "data.name=x: only keys of data.cache can be set here"),
    ],
)
def test_mistakes_end_with_exit_code_2(place, words, message):
    done = place.command("data", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
