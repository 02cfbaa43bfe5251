"""Benchmarks are kept out of a dataset, whatever the cleaning steps do and however their files change."""

import re

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.config import DecontaminateConfig
from data_pipeline.errors import DataError
from tests.support.corpus import make_texts, prepare_synthetic, write_folder, write_jsonl

TEXTS = make_texts(40)
WORDS = [f"word{number}" for number in range(20)]
CONTAMINATED = "decontaminate/held_out_ngram"


def against(*inputs, **changes):
    defaults = {"inputs": tuple(map(str, inputs)), "text_key": "text", "ngram": 13}
    return {"decontaminate": DecontaminateConfig(**{**defaults, **changes})}


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_a_document_that_overlaps_a_benchmark_is_dropped(tmp_path, caplog):
    benchmark = write_jsonl(tmp_path / "benchmark.jsonl", [" ".join(WORDS)])
    source = write_jsonl(tmp_path / "in.jsonl", [*TEXTS, f"Before it. {' '.join(WORDS).upper()} and after."])
    manifest = prepare_synthetic(tmp_path / "set", [source], **against(benchmark))
    assert manifest.corpus.dropped == {CONTAMINATED: 1}
    assert manifest.corpus.num_documents == len(TEXTS)
    assert warnings(caplog) == []


def test_text_is_decontaminated_before_and_after_cleaning(tmp_path):
    question = [*WORDS[:8], "me@example.com", *WORDS[8:16]]
    benchmark = write_jsonl(tmp_path / "benchmark.jsonl", [" ".join(question), " ".join(WORDS)])
    masked, laid_bare = " ".join(question), "\n".join([*WORDS[:9], "A line.", *WORDS[9:]])
    planted = [masked, laid_bare, f"{masked} short"]
    source = write_jsonl(tmp_path / "in.jsonl", [*TEXTS, *planted])
    steps = (
        {"step": "lines", "patterns": [r"A line\."]},
        {"step": "pii", "email": "mask"},
        {"step": "lines", "patterns": [r".* short"]},
    )
    manifest = prepare_synthetic(tmp_path / "set", [source], steps=steps, **against(benchmark))
    assert manifest.corpus.dropped == {CONTAMINATED: 2, "lines/nothing_left": 1}
    assert manifest.corpus.num_documents == len(TEXTS)
    assert manifest.corpus.changed == {}


@pytest.mark.parametrize("name", ["benchmark.jsonl", "in a folder"])
def test_a_changed_benchmark_file_is_noticed(tmp_path, caplog, name):
    def write(text):
        return write_folder(path, [text]) if name == "in a folder" else write_jsonl(path, [text])

    path = tmp_path / name
    source = write_jsonl(tmp_path / "in.jsonl", [*TEXTS, " ".join(WORDS)])
    caplog.set_level("INFO")
    of_others = write(" ".join(WORDS[::-1]))
    first = prepare_synthetic(tmp_path / "set", [source], **against(of_others))
    assert first.corpus.dropped == {}
    write(" ".join(WORDS[::-1]))  # at another time
    assert prepare_synthetic(tmp_path / "set", [source], **against(path)) == first
    assert "already prepared" in caplog.text
    write(" ".join(WORDS))
    expected = r"settings \(fingerprint of data.decontaminate.inputs was '?[0-9a-f]{64}'?, now '?[0-9a-f]{64}"
    with pytest.raises(DataError, match=expected):
        prepare_synthetic(tmp_path / "set", [source], **against(path))
    second = prepare_synthetic(tmp_path / "set", [source], overwrite=True, **against(path))
    assert second.corpus.dropped == {CONTAMINATED: 1}


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], "0 texts, 0 of them with fewer than 8 words; dropped: none"),
        (["", "too short"], r"1 texts, 1 of them with fewer than 8 words; dropped: \{'empty': 1\}"),
    ],
)
def test_a_benchmark_without_ngrams_is_an_error_with_a_hint(tmp_path, lines, found):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    benchmark = write_jsonl(tmp_path / "benchmark.jsonl", lines)
    message = (
        rf"data.decontaminate.inputs=\['{re.escape(str(benchmark))}'\]: contain no n-gram of "
        rf"data.decontaminate.ngram=13 words \({found}\)\n"
        "  hint: give longer texts, under data.decontaminate.text_key=text"
    )
    with pytest.raises(DataError, match=message):
        prepare_synthetic(tmp_path / "set", [source], **against(benchmark))


def test_ignored_benchmark_texts_are_counted_in_a_warning(tmp_path, caplog):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    texts = write_jsonl(tmp_path / "benchmark.jsonl", [" ".join(WORDS), "too short", "short too", ""])
    of_other_key = write_jsonl(tmp_path / "other.jsonl", ["a", "b", "c"], key="question")
    prepare_synthetic(tmp_path / "set", [source], encoding_errors="skip", **against(texts, of_other_key))
    assert warnings(caplog) == [
        "data.decontaminate.inputs: 2 of 3 texts have fewer than 8 words and are ignored",
        "data.decontaminate.inputs: some documents are ignored (dropped: {'empty': 1, 'no_text': 3})",
    ]


def test_an_invalid_ngram_length_names_its_key(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    with pytest.raises(DataError, match=r"data\.decontaminate\.ngram=5: must be 8 to 63 words"):
        prepare_synthetic(tmp_path / "set", [source], **against(source, ngram=5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jsonl", r"^data\.decontaminate\.inputs: \S+nowhere.jsonl does not exist\n  hint: name files"),
        ("answers.jsonl", r"answers.jsonl:1: has no key 'text' .*\n  hint: set data\.decontaminate\.text_key\n"),
        ("answers.parquet", r"answers.parquet: has no column 'text' .*\n  hint: set data\.decontaminate\.text_key$"),
    ],
)
def test_benchmark_errors_name_the_decontaminate_keys(tmp_path, name, message):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    write_jsonl(tmp_path / "answers.jsonl", ["42"], key="answer")
    pyarrow.parquet.write_table(pyarrow.table({"answer": ["42"]}), tmp_path / "answers.parquet")
    with pytest.raises(DataError, match=message):
        prepare_synthetic(tmp_path / "set", [source], **against(tmp_path / name))
