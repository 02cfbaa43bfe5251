"""A corpus in tasks: each document is in one task, is counted once, and no task runs twice."""

import html
import itertools
import json
import os
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.document import content_hash
from data_pipeline.errors import DataError, WorkInterrupted
from data_pipeline.prepare import clean_task, obtain_tokenizer, scan
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.sources.corpus import Corpus
from data_pipeline.storage import staged_folder
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.storage.task_store import TaskStore, key_of
from data_pipeline.tools.inspect import stats
from tests.support.corpus import data_config, make_texts, prepare_synthetic, write_folder, write_jsonl

TEXTS = make_texts(40)


def texts_of(corpus, task_bytes):
    tasks = corpus.tasks(task_bytes)
    data = corpus._data
    return tasks, [document.text for task in tasks for document in Corpus(data, task).documents(1 << 20)]


@pytest.mark.parametrize("name", ["in.jsonl", "IN.JSON"])
@pytest.mark.parametrize("task_bytes", [1, 100, 5_000, 10**9])
def test_tasks_hold_each_line_once_wherever_they_are_cut(tmp_path, task_bytes, name):
    source = write_jsonl(tmp_path / name, [*TEXTS[:6], "", "日本語\u2028 🙂"])
    corpus = Corpus(data_config(tmp_path, [source]))
    tasks, texts = texts_of(corpus, task_bytes)
    assert texts == [*TEXTS[:6], "日本語\u2028 🙂"]
    assert (len(tasks) > 1) == (task_bytes < source.stat().st_size)
    assert sum(span.num_bytes for task in tasks for span in task) == source.stat().st_size


def test_parquet_tasks_are_row_groups(tmp_path):
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "other": list(range(40))}), path, row_group_size=7)
    corpus = Corpus(data_config(tmp_path, [path]))
    tasks, texts = texts_of(corpus, 1)
    assert texts == TEXTS and len(tasks) == 6
    tasks, texts = texts_of(corpus, path.stat().st_size // 2)
    assert texts == TEXTS and 1 < len(tasks) < 6


def test_small_files_share_a_task_and_text_files_stay_whole(tmp_path):
    write_folder(tmp_path / "in", TEXTS)
    corpus = Corpus(data_config(tmp_path, [tmp_path / "in"]))
    tasks, texts = texts_of(corpus, 4_000)
    assert texts == TEXTS and 1 < len(tasks) < len(TEXTS)
    assert all(span.start == 0 and span.end is None for task in tasks for span in task)


def test_an_unreadable_line_is_located_in_the_file_from_any_task(tmp_path):
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": text}).encode() for text in TEXTS[:5]]
    source.write_bytes(b"\n".join([*lines, b'{"text": \xff}', b""]))
    data = data_config(tmp_path, [source])
    last = Corpus(data).tasks(len(lines[0]))[-1]
    place = sum(len(line) + 1 for line in lines)
    with pytest.raises(DataError, match=rf"in.jsonl: line at byte {place}: not UTF-8 at byte {place + 9} "):
        for task in Corpus(data).tasks(1000):
            list(Corpus(data, task).documents(1 << 20))
    assert last[0].end == source.stat().st_size


def test_a_copy_of_a_file_counts_as_a_second_file(tmp_path):
    source, copy = (write_jsonl(tmp_path / name, TEXTS) for name in ("in.jsonl", "copy.jsonl"))
    once = prepare_synthetic(tmp_path / "once", [source])
    twice = prepare_synthetic(tmp_path / "twice", [source, copy])
    assert twice.corpus.num_documents == 2 * once.corpus.num_documents


def test_a_finished_task_runs_again_only_for_new_settings(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    monkeypatch.setattr(scan, "TASK_BYTES", 5_000)
    monkeypatch.setattr(staged_folder, "SECONDS_WORTH_KEEPING", 0.0)
    made = []
    real = clean_task.run_clean_task
    monkeypatch.setattr(scan, "run_clean_task", lambda *arguments: (made.append(arguments[1]), real(*arguments)))
    too_long = {"seq_length": 10**6}
    with pytest.raises(DataError, match="too few for one sample"):
        prepare_synthetic(tmp_path / "set", [source], **too_long)
    number = len(made)
    assert number == len(set(made)) > 1
    with pytest.raises(DataError, match="too few for one sample"):
        prepare_synthetic(tmp_path / "set", [source], steps=({"step": "length", "max_chars": 10**6},), **too_long)
    assert len(made) == len(set(made)) == 2 * number, "other steps, other work"
    prepare_synthetic(tmp_path / "set", [source])
    assert len(made) == 2 * number, "a fault that came later does not cost the work before it"
    assert not (tmp_path / "set.work").exists()


def test_a_record_without_its_files_does_not_count_as_finished(tmp_path):
    work = TaskStore(tmp_path)
    key = key_of("x")
    with work.writing(key, ".part") as file:
        file.write(b"content")
    assert work.record(key) is None
    work.finish(key, {"a": 1}, (".part",))
    assert work.record(key) == {"a": 1}
    work.file(key, ".part").write_bytes(b"cut")
    assert work.record(key) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:100] + bytes(len(whole) - 100),
        lambda whole: whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    ],
    ids=["empty", "cut", "overwritten", "flipped", "of another checksum"],
)
def test_damaged_results_stop_the_run_and_only_they_are_redone(tmp_path, monkeypatch, damage):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    expected = prepare_synthetic(tmp_path / "whole", [source])
    monkeypatch.setattr(scan, "TASK_BYTES", 5_000)
    made = []
    real_cleaning, real_training = scan.run_clean_task, obtain_tokenizer.train_tokenizer
    monkeypatch.setattr(
        scan, "run_clean_task", lambda *arguments: (made.append(arguments[1]), real_cleaning(*arguments))
    )

    def damage_and_train(*arguments):
        path = tmp_path / "set.work" / f"{made[2]}.texts.zst"
        path.write_bytes(damage(path.read_bytes()))
        return real_training(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(obtain_tokenizer, "train_tokenizer", damage_and_train)
        with pytest.raises(
            WorkInterrupted, match=r"result of a finished task is damaged \(texts of .*\n  hint: remove this"
        ) as stopped:
            prepare_synthetic(tmp_path / "set", [source])
    damaged = made[2]
    assert f"{damaged}.texts.zst" in str(stopped.value)
    (tmp_path / "set.work" / f"{damaged}.texts.zst").unlink()
    made.clear()
    assert prepare_synthetic(tmp_path / "set", [source]).digest == expected.digest
    assert made == [damaged]


def test_unneeded_frames_may_be_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(clean_task, "BATCH_BYTES", 3_000)
    data = data_config(tmp_path / "set", [write_jsonl(tmp_path / "in.jsonl", TEXTS)])
    (task,) = Corpus(data).tasks(1 << 30)
    work = TaskStore(tmp_path)
    clean_task.run_clean_task(work, "key", task, clean_task.CleanConfig(data, 1 << 20, None))
    frames = clean_task.documents(work, "key")["frame"]
    assert len(set(frames)) > 5
    assert list(clean_task.texts(work, "key", np.full(40, True))) == TEXTS
    chosen = np.arange(40) % 7 == 3
    spared = [(first, last) for first, last in itertools.pairwise(sorted(set(frames))) if first not in frames[chosen]]
    content = bytearray(work.file("key", clean_task.TEXTS).read_bytes())
    for first, last in spared:
        content[first:last] = bytes(last - first)
    work.file("key", clean_task.TEXTS).write_bytes(content)
    assert spared
    assert list(clean_task.texts(work, "key", chosen)) == TEXTS[3::7]
    assert not list(clean_task.texts(work, "key", np.full(40, False)))
    with pytest.raises(WorkInterrupted, match="is damaged"):
        list(clean_task.texts(work, "key", np.full(40, True)))


def test_two_processes_may_write_the_same_file(tmp_path, monkeypatch):
    """Simulated in one process: processes of two containers may have the same number."""
    work = TaskStore(tmp_path)
    with work.writing("key", ".part") as first, work.writing("key", ".part") as second:
        first.write(b"content" * 10_000)
        second.write(b"content" * 10_000)
    assert work.file("key", ".part").read_bytes() == b"content" * 10_000

    def write_meanwhile(descriptor):
        monkeypatch.undo()
        write_durably(tmp_path / "record", b"content")

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    write_durably(tmp_path / "record", b"content")
    assert (tmp_path / "record").read_bytes() == b"content"
    assert {path.name for path in tmp_path.iterdir()} == {"key.part", "record"}


def test_steps_and_copies_are_counted_by_rule_and_add_up(tmp_path):
    near = [text.replace("ba", "bo", 1) for text in TEXTS if text.count(" ") > 100][:5]
    source = write_jsonl(tmp_path / "in.jsonl", [*TEXTS, *TEXTS[:7], *near, "tiny", "mail me@example.com " * 3])
    steps = ({"step": "length", "min_chars": 30}, {"step": "pii"})
    manifest = prepare_synthetic(tmp_path / "set", [source], steps=steps, dedup="near")
    record = manifest.corpus
    assert record.dropped == {"dedup/exact": 7, "dedup/near": 5, "length/too_few_chars": 1}
    assert record.changed == {"pii/email": 1}
    assert record.num_documents + sum(record.dropped.values()) == len(TEXTS) + 7 + 5 + 2


def test_the_report_shows_counts_and_escapes_the_text(tmp_path):
    hostile = "<script>alert(1)</script> tiny"
    inputs = [
        write_jsonl(tmp_path / f"{n}.jsonl", texts) for n, texts in enumerate([[*TEXTS, *TEXTS[:3], hostile], TEXTS])
    ]
    steps = ({"step": "length", "min_chars": 31},)
    manifest = prepare_synthetic(tmp_path / "set", inputs, steps=steps, dedup="exact", report=True)
    page = (tmp_path / "set" / "prepare_report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "length/too_few_chars" in page and "dedup/exact" in page and page.count("data:image/png") == 4
    assert f"{len(TEXTS) + 3:,}" in page, "documents that were equal to an earlier one"
    assert PackedDataset.open(tmp_path / "set", "train").num_samples == manifest.splits["train"].num_samples


def test_report_examples_do_not_depend_on_tasks(tmp_path, monkeypatch):
    tiny = [f"tiny {number}" for number in range(len(TEXTS))]
    source = write_jsonl(tmp_path / "in.jsonl", itertools.chain.from_iterable(zip(TEXTS, tiny, strict=True)))
    for number in (1, 4, 16):
        monkeypatch.setattr(scan, "MIN_TASK_BYTES", source.stat().st_size // number)
        monkeypatch.setattr(scan, "TASK_BYTES", source.stat().st_size // number)
        prepare_synthetic(tmp_path / str(number), [source], steps=({"step": "length", "min_chars": 31},), report=True)
        page = (tmp_path / str(number) / "prepare_report.html").read_text()
        assert re.findall(r"<pre>(tiny \d+)</pre>", page) == sorted(tiny, key=content_hash)[:3]


def test_the_report_locates_unreadable_and_empty_documents(tmp_path):
    bad = [b'{"text": ""}', b'{"text": "\xff"}', b'{"<script>": 1}', *[b"[1]"] * 5]
    source = write_jsonl(tmp_path / "<b>.jsonl", TEXTS)
    source.write_bytes(source.read_bytes() + b"\n".join(bad))
    manifest = prepare_synthetic(tmp_path / "set", [source], encoding_errors="skip", report=True)
    assert manifest.corpus.dropped == {"broken_json": 5, "empty": 1, "no_text": 1, "not_utf8": 1}
    page = (tmp_path / "set" / "prepare_report.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "<script>" not in page
    examples = html.unescape("".join(re.findall(r"<details>.*?</details>", page, re.DOTALL)))
    found = re.findall(r'<p class="quiet">.*<b>.jsonl:(\d+)</p>\n(?:<pre>(.{17}))?', examples)
    assert [(int(line) - len(TEXTS), problem) for line, problem in found] == [
        *((number, "not a JSON object") for number in (4, 5, 6)),
        (1, ""),
        (3, "has no key 'text'"),
        (2, "not UTF-8 at byte"),
    ]


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(("name", "shown"), [(b"b\xffd.jsonl", r"b\udcffd.jsonl"), (b"$\\x$.jsonl", r"$\x$.jsonl")])
def test_unusual_names_are_shown_in_the_report(tmp_path, name, shown, is_named):
    (tmp_path / "in").mkdir()
    source = write_jsonl(tmp_path / "in" / os.fsdecode(name), [*TEXTS, "tiny", *TEXTS[:3]])
    steps = ({"step": "length", "min_chars": 31},)
    given = source if is_named else tmp_path / "in"
    manifest = prepare_synthetic(tmp_path / "set", [given], steps=steps, dedup="exact", report=True)
    page = (tmp_path / "set" / "prepare_report.html").read_text(encoding="utf-8")
    assert f"in/{shown}:41</p>\n<pre>tiny</pre>" in page
    assert manifest.sources[0].name.endswith(shown) == is_named
    assert json.dumps(stats(tmp_path / "set"), ensure_ascii=False).encode()
    assert prepare_synthetic(tmp_path / "set", [given], steps=steps, dedup="exact") == manifest


def test_sources_add_up_to_the_whole(tmp_path):
    inputs = [write_jsonl(tmp_path / "a.jsonl", TEXTS[:10]), write_folder(tmp_path / "b", TEXTS[10:])]
    manifest = prepare_synthetic(tmp_path / "set", inputs)
    assert [source.name for source in manifest.sources] == [str(given) for given in inputs]
    assert [source.documents for source in manifest.sources] == [10, len(TEXTS) - 10]
    splits = manifest.splits.values()
    assert sum(source.tokens for source in manifest.sources) == sum(split.num_tokens for split in splits)
    assert sum(source.text_bytes for source in manifest.sources) == manifest.corpus.num_bytes


@pytest.mark.parametrize(
    ("lines", "left_out"),
    [([], "none"), (["", ""], r"\{'empty': 2\}"), ([*TEXTS[:2], "", TEXTS[0]], r"\{'dedup': 3, 'empty': 1\}")],
)
def test_an_input_without_documents_is_named_in_a_warning(tmp_path, caplog, lines, left_out):
    inputs = [write_jsonl(tmp_path / "a.jsonl", TEXTS), write_jsonl(tmp_path / "b.jsonl", lines)]
    manifest = prepare_synthetic(tmp_path / "set", inputs, dedup="exact")
    [reported] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert re.match(rf"data.inputs: no document of {inputs[1]} was kept \(dropped: {left_out}\);", reported)
    assert [source.documents for source in manifest.sources] == [len(TEXTS), 0]
