"""The commands open the same data at a URL as in a folder."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.stream.dataset_locations import dataset_folders
from data_pipeline.stream.shard_prefetch import fetch_all
from pretrain.cli import main
from pretrain.config.checks import check_prepare, check_run
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.planner.plan import plan
from pretrain.run.tokenizer import check_tokenizer, keep_tokenizer, tokenizer_of
from pretrain.training.data import open_datasets
from tests.support.corpus import make_texts, prepare_synthetic, write_jsonl
from tests.support.http_server import serving, status


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("commands")
    prepare_synthetic(place / "set", [write_jsonl(place / "texts.jsonl", make_texts(40))])
    return place / "set"


def run_config(path, tmp_path: Path, *overrides: str):
    return load_run_config(
        [f"data.path={path}", "model.seq_length=16", f"data.cache.dir={tmp_path / 'cache'}", *overrides]
    )


def test_a_remote_dataset_opens_and_plans_like_a_local_one(prepared, tmp_path):
    with serving(prepared.parent) as served:
        here, there = (run_config(path, tmp_path) for path in (prepared, f"{served.url}/set"))
        (local, local_held_out), (remote, remote_held_out) = open_datasets(here), open_datasets(there)
        assert remote.manifest == local.manifest
        assert remote_held_out.keys() == local_held_out.keys() == {"files"}
        assert tokenizer_of(tmp_path, there.data).fingerprint == tokenizer_of(tmp_path, here.data).fingerprint
        keep_tokenizer(tmp_path / "run", check_tokenizer(remote))
        assert plan(there, 1, None).replace(f"{served.url}/set", "X") == plan(here, 1, None).replace(f"{prepared}", "X")

    kept = tokenizer_of(tmp_path / "run", there.data)
    assert kept.fingerprint == local.manifest.tokenizer.fingerprint, "the server is gone"


def test_files_fetched_before_a_run_are_not_requested_again(prepared, tmp_path):
    with serving(prepared.parent) as served:
        config = run_config(f"{served.url}/set", tmp_path)
        fetch_all(dataset_folders(config.data)["files"])
        asked = served.requests.copy()
        for dataset in (open_datasets(config)[0], open_datasets(config)[1]["files"]):
            dataset.read(np.arange(dataset.num_samples))
        assert served.requests - asked == {"manifest.json": 2}


def test_a_file_that_cannot_be_fetched_before_a_run_is_named(prepared, tmp_path):
    with serving(prepared.parent) as served:
        served.lasting["validation-00000.tar"] = status(404)
        config = run_config(f"{served.url}/set", tmp_path)
        with pytest.raises(DataError, match=r"validation-00000.tar: cannot be read: HTTP status 404"):
            fetch_all(dataset_folders(config.data)["files"])


def test_train_refuses_data_that_does_not_fit_the_cache(prepared, tmp_path):
    with serving(prepared.parent) as served, pytest.raises(DataError, match=r"data.cache.max_bytes=20,000: the shards"):
        open_datasets(run_config(f"{served.url}/set", tmp_path, "data.cache.max_bytes=20000"))


def test_the_data_command_takes_urls_and_cache_settings(prepared, tmp_path, capsys):
    with serving(prepared.parent) as served:
        cache = f"data.cache.dir={tmp_path / 'cache'}"
        for words, shown in (
            (["stats", f"{served.url}/set", cache], '"train"'),
            (["inspect", f"{served.url}/set", "--samples", "1", cache], "--- train sample 0"),
            (["verify", f"{served.url}/set", cache], f"{served.url}/set: whole\n"),
            (["fetch", f"{served.url}/set", cache], f" MB, in {tmp_path / 'cache'}\n"),
        ):
            with pytest.raises(SystemExit) as end:
                main(["data", *words])
            assert end.value.code == 0 and shown in capsys.readouterr().out
        assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.cache.max_bytes=0", r"data.cache.max_bytes=0: must be greater than 0"),
        ("data.cache.timeout_seconds=0", r"data.cache.timeout_seconds=0.0: must be greater than 0"),
        ("data.cache.timeout_seconds=1e5", r"data.cache.timeout_seconds=100000.0: must be at most 86400, which is"),
        ("data.cache.retries=-1", r"data.cache.retries=-1: must not be negative"),
    ],
)
def test_cache_settings_are_checked(override, message, tmp_path):
    config = run_config("unused", tmp_path, override)
    for check in (check_prepare, lambda config: check_run(config, 1)):
        with pytest.raises(ConfigError, match=message):
            check(config)


def test_the_data_may_move_between_runs(prepared, tmp_path):
    from pretrain.run.config_history import check_same_config, record_config

    here = run_config(prepared, tmp_path)
    record_config(tmp_path, here, 0)
    there = dataclasses.replace(here, data=dataclasses.replace(here.data, path="s3://bucket/set"))
    check_same_config(tmp_path, there)
