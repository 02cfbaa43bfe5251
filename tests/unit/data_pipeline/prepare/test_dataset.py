import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from data_pipeline import progress
from data_pipeline.errors import DataError
from data_pipeline.prepare import dataset as prepare_module
from data_pipeline.prepare import encode_task, obtain_tokenizer, scan
from data_pipeline.prepare.dataset import summarize
from data_pipeline.shards.manifest import Manifest
from tests.support.corpus import (
    documents_of,
    prepare_synthetic,
    tokenizer_config,
    write_folder,
    write_jsonl,
)
from tests.unit.data_pipeline.prepare.prepared_folder import SPLITS, TEXTS, UNTOLD, contents


def test_every_document_is_in_one_split_in_order(prepared):
    train, validation = (documents_of(prepared, split) for split in SPLITS)
    assert not set(train[:-1]) & set(validation[:-1]), "copies straddle the split"
    expected = [*TEXTS, *TEXTS[:20]]
    for documents in (train, validation):
        inside = [text for text in expected if text in set(documents)]
        assert documents[:-1] == inside[: len(documents) - 1]
        assert 0 <= len(inside) - (len(documents) - 1) <= 1
    manifest = Manifest.load(prepared)
    assert len(train) + len(validation) >= len(expected)
    assert sum(manifest.splits[split].num_documents for split in SPLITS) == len(expected)


def test_manifest_counts_add_up(prepared):
    manifest = Manifest.load(prepared)
    total = sum(len(text.encode()) for text in [*TEXTS, *TEXTS[:20]])
    assert sum(manifest.splits[split].num_text_bytes for split in SPLITS) == manifest.corpus.num_bytes == total
    assert manifest.validation_share == manifest.splits["validation"].num_text_bytes / total
    assert manifest.splits["validation"].num_text_bytes >= 2000
    assert manifest.corpus.dropped == {"empty": 1}
    assert manifest.tokenizer.vocab_size == 420 and manifest.dtype == "uint16"
    assert manifest.settings["data.validation_min_bytes"] == 2000 and manifest.settings["model.seq_length"] == 16
    figures = summarize(manifest)
    assert figures["documents"] == 81 and figures["text bytes"] == total
    assert figures["bytes per token"] == round(total / figures["tokens"], 3)


@pytest.mark.parametrize(("task_bytes", "num_workers"), [(3_000, 1), (30_000, 2)])
def test_task_size_and_workers_do_not_change_a_byte(prepared, source, tmp_path, monkeypatch, task_bytes, num_workers):
    monkeypatch.setattr(scan, "TASK_BYTES", task_bytes)
    prepare_synthetic(tmp_path / "set", [source], num_workers=num_workers)
    assert contents(tmp_path / "set", UNTOLD) == contents(prepared, UNTOLD)


def test_memory_batches_do_not_change_the_result(prepared, source, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_task, "BATCH_BYTES", 1)
    prepare_synthetic(tmp_path / "set", [source])
    assert contents(tmp_path / "set", UNTOLD) == contents(prepared, UNTOLD)


def test_one_long_file_is_split_so_that_some_is_held_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    text = "".join(TEXTS)
    (tmp_path / "my.txt").write_bytes(text.encode())
    manifest = prepare_synthetic(tmp_path / "set", [tmp_path / "my.txt"])
    assert "few documents: text files are split at line ends" in caplog.text
    assert manifest.corpus.num_bytes == len(text.encode()) and manifest.corpus.num_cut_files == 1
    assert 0 < manifest.validation_share < 0.3


def test_touched_files_are_compared_by_content(prepared, source, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    before = {file.name: file.stat().st_mtime_ns for file in prepared.iterdir()}
    os.utime(source, ns=(1, 1))
    again = prepare_synthetic(prepared, [source])
    assert "already prepared from the same text and settings" in caplog.text
    assert again == Manifest.load(prepared)
    changed = {file.name for file in prepared.iterdir() if before[file.name] != file.stat().st_mtime_ns}
    assert changed == {"inputs.json"}

    def read_again(*_):
        raise AssertionError("text was read although nothing was touched")

    monkeypatch.setattr(prepare_module, "scan_corpus", read_again)
    prepare_synthetic(prepared, [source])


def test_changed_settings_or_text_are_refused_and_named(prepared, source):
    before = contents(prepared, UNTOLD)
    with pytest.raises(
        DataError,
        match=r"other text or settings \(data.validation_fraction was 0.1, now 0.2; model.seq_length was 16, now 8; "
        r"tokenizer.vocab_size was 420, now 421\)\n"
        r"  hint: choose another data.path\n  hint: set prepare.overwrite=true",
    ):
        prepare_synthetic(
            prepared, [source], seq_length=8, validation_fraction=0.2, tokenizer=tokenizer_config(vocab_size=421)
        )
    whole = source.read_bytes()
    try:
        source.write_bytes(whole + b'{"text": "one more"}\n')
        with pytest.raises(DataError, match=r"the text in data.inputs: digest was [0-9a-f]{64}, now [0-9a-f]{64}"):
            prepare_synthetic(prepared, [source])
    finally:
        source.write_bytes(whole)
    assert contents(prepared, UNTOLD) == before


def test_overwrite_replaces_and_repairs(source, tmp_path):
    folder = tmp_path / "set"
    prepare_synthetic(folder, [source])
    good = contents(folder)
    shard = folder / "train-00000.tar"
    flipped = bytearray(shard.read_bytes())
    flipped[2000] ^= 1
    shard.write_bytes(flipped)
    prepare_synthetic(folder, [source], overwrite=True)
    assert contents(folder) == good
    assert prepare_synthetic(folder, [source], seq_length=8, overwrite=True).seq_length == 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_dataset_of_a_newer_version_is_never_replaced(source, tmp_path, overwrite):
    folder = tmp_path / "set"
    prepare_synthetic(folder, [source])
    stored = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(stored | {"version": 99, "checksum": "of another kind"}))
    before = contents(folder)
    with pytest.raises(
        DataError, match=r"newer version of pretrain .*\n  hint: upgrade pretrain\n  hint: choose another data\.path"
    ):
        prepare_synthetic(folder, [source], overwrite=overwrite)
    assert contents(folder) == before and [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_failed_overwrite_keeps_the_old_dataset(prepared, source):
    before = contents(prepared)
    with pytest.raises(DataError, match=r"tokenizer.vocab_size=99999"):
        prepare_synthetic(prepared, [source], overwrite=True, tokenizer=tokenizer_config(vocab_size=99999))
    assert contents(prepared) == before
    assert [entry.name for entry in prepared.parent.iterdir()] == ["set"]


def test_a_damaged_dataset_does_not_count_as_prepared(source, tmp_path):
    prepare_synthetic(tmp_path / "set", [source])
    (tmp_path / "set" / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"tokenizer.model: is not a SentencePiece model"):
        prepare_synthetic(tmp_path / "set", [source])


def test_a_folder_with_other_files_is_never_replaced(source, tmp_path):
    write_folder(tmp_path / "set", ["mine"])
    for overwrite in (False, True):
        with pytest.raises(
            DataError, match=r"data.path=.*set: exists and is not a prepared dataset\n  hint: choose another"
        ):
            prepare_synthetic(tmp_path / "set", [source], overwrite=overwrite)
    assert (tmp_path / "set" / "0000.txt").read_text() == "mine"


def test_an_existing_tokenizer_is_used_and_checked_for_changes(prepared, source, tmp_path):
    model = tmp_path / "my.model"
    model.write_bytes((prepared / "tokenizer.model").read_bytes())
    given = tokenizer_config(path=str(model), vocab_size=7)
    manifest = prepare_synthetic(tmp_path / "set", [source], tokenizer=given)
    assert manifest.tokenizer.fingerprint == Manifest.load(prepared).tokenizer.fingerprint
    assert manifest.tokenizer.vocab_size == 420
    assert [split.num_tokens for split in manifest.splits.values()] == [
        split.num_tokens for split in Manifest.load(prepared).splits.values()
    ]
    other = tmp_path / "other"
    prepare_synthetic(other, [source], tokenizer=tokenizer_config(vocab_size=400))
    model.write_bytes((other / "tokenizer.model").read_bytes())
    with pytest.raises(DataError, match=r"fingerprint of tokenizer.path was"):
        prepare_synthetic(tmp_path / "set", [source], tokenizer=given)
    with pytest.raises(DataError, match=r"missing.model: the tokenizer cannot be read"):
        prepare_synthetic(tmp_path / "new", [source], tokenizer=tokenizer_config(path="missing.model"))


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (
            ["", ""],
            {},
            r"no text \(1 files; dropped: \{'empty': 2\}\)\n.*data.inputs=\[my.txt\]\n  hint: use data=stdlib",
        ),
        ([], {}, r"no text \(1 files\)\n  hint: give files"),
        (TEXTS, {"seq_length": 10**6}, r"the train split has \d+ bytes of text \(\d+ tokens\), too few for one sample"),
        (
            TEXTS,
            {"seq_length": 2000, "validation_min_bytes": 100, "validation_fraction": 0.0},
            r"the validation split has .* \(\+ 1\) tokens\n  hint: raise data.validation_min_bytes",
        ),
        (TEXTS[:1], {}, r"hold out all text, so none is left for training"),
        (
            TEXTS,
            {"tokenizer": tokenizer_config(vocab_size=50_000)},
            r"tokenizer.vocab_size=50000: the text yields at",
        ),
    ],
)
def test_input_that_cannot_be_prepared_leaves_no_files(tmp_path, texts, changes, message):
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    with pytest.raises(DataError, match=message):
        prepare_synthetic(tmp_path / "data" / "deep" / "set", [source], **changes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


def test_prepare_does_not_import_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import data_pipeline.prepare.dataset, data_pipeline.permutation, data_pipeline.shards.reader"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_without_a_terminal_is_plain_lines(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.show_progress("encoding", 4_000_000) as update:
        time.sleep(0.01)
        update(1_000_000)
    assert "encoding: 1.0 of 4.0 MB, " in caplog.text and " s left" in caplog.text


def test_input_order_changes_only_document_order(tmp_path):
    first, second = write_jsonl(tmp_path / "a.jsonl", TEXTS[:30]), write_jsonl(tmp_path / "b.jsonl", TEXTS[30:])
    one = prepare_synthetic(tmp_path / "one", [first, second])
    two = prepare_synthetic(tmp_path / "two", [second, first])
    assert one.tokenizer == two.tokenizer
    assert one.digest != two.digest
    for split in SPLITS:
        a, b = (dataclasses.asdict(m.splits[split]) for m in (one, two))
        assert all(a[key] == b[key] for key in ("num_documents", "num_tokens", "num_text_bytes"))


def test_an_error_in_the_tokenizer_check_ends_the_run(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    prepare_synthetic(tmp_path / "set", [source])
    given = tokenizer_config(path=str(tmp_path / "set" / "tokenizer.model"))

    def fail(*arguments):
        raise DataError("cannot be tried")

    monkeypatch.setattr(obtain_tokenizer, "warn_if_text_changes", fail)
    with pytest.raises(DataError, match="cannot be tried"):
        prepare_synthetic(tmp_path / "other", [source], tokenizer=given)
    assert not (tmp_path / "other").exists()


def test_an_encoding_error_does_not_wait_for_the_tokenizer_check(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    prepare_synthetic(tmp_path / "set", [source])
    given = tokenizer_config(path=str(tmp_path / "set" / "tokenizer.model"))
    failed = threading.Event()
    monkeypatch.setattr(obtain_tokenizer, "warn_if_text_changes", lambda *arguments: failed.wait(60))

    def fail(*arguments):
        raise DataError("cannot be encoded")

    monkeypatch.setattr(prepare_module, "run_encode_task", fail)
    try:
        begin = time.monotonic()
        with pytest.raises(DataError, match="cannot be encoded"):
            prepare_synthetic(tmp_path / "other", [source], tokenizer=given)
        assert time.monotonic() - begin < 50
    finally:
        failed.set()
