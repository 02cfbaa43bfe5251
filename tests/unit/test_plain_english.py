"""No house word is left in docstrings, comments, messages, names of tests or documents."""

import pytest

from tests.support.plain_english import EXCEPTIONS, Text, findings, search, texts


def test_no_house_word_is_left() -> None:
    assert not [str(finding) for finding in findings()]


def test_no_exception_is_out_of_date() -> None:
    for file, part in EXCEPTIONS:
        assert any(part in str(finding) for text in texts(file) for finding in search(text)), (file, part)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The run goes on and the user is told.", 2),
        ("A rank that is none of these; it is none.", 1),
        ("There is no longer a file, and this is no file", 1),
        ("None if x is None.", 0),
        ("All but for one; equal but for the first.", 2),
        ("It stands for a path, and stands there.", 1),
        ("silent data corruption on a silent server", 1),
        ("nobody mends it anew, whoever has begun, alike or ill", 7),
    ],
)
def test_house_words_are_found_and_plain_ones_left(text: str, count: int) -> None:
    assert len(list(search(Text("file.py", 1, "comment", text)))) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Of the samples.", 1),
        ("What it costs.", 1),
        ("Return the size. Of that, half.", 1),
        ("Numbers of ranks. Where a rank fails, it is named.", 0),
    ],
)
def test_fragments_are_found_in_docstrings_only(text: str, count: int) -> None:
    assert len(list(search(Text("file.py", 1, "docstring", text)))) == count
    assert not list(search(Text("file.py", 1, "comment", text)))
