"""Items that the training text contains, found as data.decontaminate finds them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.evaluation.contamination import by_task, find_items, training_texts
from pretrain.evaluation.tasks import Question, Task

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def found(texts: list[str], *tasks: Task, ngram: int = 13) -> list[tuple[str, str]]:
    return [(each.place, each.words) for each in find_items(tasks, texts, ngram)]


def test_an_item_with_a_shared_ngram_is_named():
    task = Task("t", texts=(TEXT, "other words " * 9), places=("t.jsonl:1", "t.jsonl:3"))
    places = found(["nothing", f"Before, {TEXT.upper()}!"], task)
    assert places == [("t.jsonl:1", " ".join(TEXT.split()[:13]).upper())]


def test_thirteen_words_are_needed():
    task = Task("t", texts=(TEXT,), places=("t.jsonl:1",))
    assert not found([" ".join(TEXT.split()[:12]) + " more"], task)
    assert found([" ".join(TEXT.split()[:12]) + " more"], task, ngram=12)


def test_only_the_right_choice_counts():
    first, second = " ".join(TEXT.split()[:9]), " " + " ".join(TEXT.split()[9:])
    right, wrong = (Question(first, (second, " something else"), answer) for answer in (0, 1))
    assert found([TEXT], Task("t", (wrong, right), places=("a:1", "a:2"))) == [("a:2", " ".join(TEXT.split()[:13]))]


def test_items_come_by_task_and_in_order():
    tasks = [Task(name, texts=(TEXT, TEXT + " more"), places=(f"{name}:1", f"{name}:2")) for name in "ab"]
    items = by_task(find_items(tasks, [TEXT], 13))
    assert {name: [place.split(": ")[0] for place in places] for name, places in items.items()} == {
        "a": ["a:1", "a:2"],
        "b": ["b:1", "b:2"],
    }


class Letters:
    eod_id = 0

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def split(rows: list[str], *, is_padded: bool) -> Any:
    tokens = np.array([[ord(character) if character != "|" else 0 for character in row] for row in rows])
    return SimpleNamespace(num_samples=len(rows), is_padded=is_padded, read=lambda numbers: tokens[numbers])


@pytest.mark.parametrize(
    ("rows", "is_padded", "expected"),
    [
        (["ab|cd", "def|g", "ghijk"], False, ["ab", "cdef", "ghijk"]),  # neighbours share a token
        (["abcd|", "|efgh"], False, ["abcd", "efgh"]),
        (["abcde", "xyz|u"], False, ["abcde", "xyz", "u"]),
        (["abc||", "cdefg"], True, ["abc", "cdefg"]),
        (["abcde", "ef|||"], True, ["abcde", "ef"]),
    ],
)
def test_documents_are_whole_over_samples(rows, is_padded, expected):
    assert list(training_texts(split(rows, is_padded=is_padded), Letters())) == expected  # type: ignore[arg-type]
