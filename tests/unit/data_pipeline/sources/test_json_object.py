"""No key of a JSON line makes the text of another key unreadable."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.json_object import _flat, kind_of, parse_json
from tests.support.corpus import data_config

HUGE, DEEP = "9" * 5000, "[" * 100_000 + "]" * 100_000
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-100, 100)
    | st.floats(allow_nan=False)
    | st.text('a"\\\n{}[],:é', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\', max_size=2), inner, max_size=3),
    max_leaves=12,
)


def read(tmp_path, *lines, **changes):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    corpus = Corpus(data_config(tmp_path / "out", [path], **changes))
    return [document.text for document in corpus.documents(1 << 20)], corpus.dropped


@pytest.mark.parametrize("value", [HUGE, f"-{HUGE}", DEEP, f'{{"n": [{HUGE}, {DEEP}]}}', "1e999", f"0.{HUGE}"])
def test_a_huge_value_of_another_key_loses_no_document(tmp_path, value):
    lines = [f'{{"x": {value}, "text": "\\u00e9 before"}}', f'{{"text": "after", "x": {value}}}']
    assert read(tmp_path, *lines) == (["é before", "after"], {})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f'{{"x": {HUGE}, "text": "a"', "not a JSON object"),
        (f'{{"x": {DEEP}], "text": "a"}}', "not a JSON object"),
        (f'{{"x": {DEEP}, "text": "a"}} 1', r"not a JSON object \(Extra data"),
        (f'{{"x": [{DEEP}, 01], "text": "a"}}', "not a JSON object"),
        (f"[{DEEP}]", "not a JSON object but an array"),
        (f'{{"text": {DEEP}}}', "'text' is an array, but must be a string"),
        (f'{{"text": {HUGE}}}', "'text' is a number, but must be a string"),
        (f'{{"body": {HUGE}}}', r"has no key 'text' \(it has \['body'\]\)"),
    ],
)
def test_an_invalid_line_with_a_huge_value_is_refused(tmp_path, line, problem):
    with pytest.raises(DataError, match=f"in.jsonl:1: {problem}"):
        read(tmp_path, line)
    texts, dropped = read(tmp_path, line, '{"text": "next"}', encoding_errors="skip")
    assert texts == ["next"] and dropped.total() == 1


@given(VALUES, st.booleans(), st.none() | st.tuples(st.integers(0, 100), st.sampled_from('[]{},:"\\1 e\x01')))
def test_the_fallback_parser_agrees_with_json_loads(value, is_long, change):
    line = json.dumps(value, indent=1 if is_long else None)
    if change is not None:
        place = change[0] % len(line)
        line = line[:place] + change[1] + line[place + 1 :]
    try:
        expected = json.loads(line)
    except json.JSONDecodeError:
        with pytest.raises(json.JSONDecodeError):
            json.loads(_flat(line))
    else:
        assert json.loads(_flat(line)) == emptied(expected)


def emptied(value):
    """The value with its nested containers emptied."""
    if isinstance(value, dict):
        return {key: type(inner)() if isinstance(inner, dict | list) else inner for key, inner in value.items()}
    return (
        [type(inner)() if isinstance(inner, dict | list) else inner for inner in value]
        if isinstance(value, list)
        else value
    )


def test_types_have_their_json_names():
    values = [None, True, 1, 2.5, "", [], {}]
    kinds = ["null", "true or false", "a number", "a number", "a string", "an array", "an object"]
    assert [kind_of(parse_json(json.dumps(value))) for value in values] == kinds
