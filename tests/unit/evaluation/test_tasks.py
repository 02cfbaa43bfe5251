"""Tasks: what a line may be, what is asked of the model, and the figures."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from pretrain.config.errors import ConfigError
from pretrain.evaluation.figures import figures_of
from pretrain.evaluation.requests import Request, asked_of, choice_requests
from pretrain.evaluation.scoring import Scored
from pretrain.evaluation.tasks import Question, Task, read_task
from tests.support.corpus import make_texts


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    config = TokenizerConfig(kind="bpe", vocab_size=320, sample_bytes=1 << 20, path=None, eod=None, seed=0)
    return SentencePieceTokenizer(train_tokenizer(lambda: make_texts(40), config))


def written(folder: Path, *lines: object) -> Path:
    path = folder / "task.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "task.jsonl:2: is not valid JSON"),
        ({**GOOD, "answer": 2}, "task.jsonl:2: must be"),
        ({**GOOD, "answer": True}, "task.jsonl:2: must be"),
        ({**GOOD, "choices": ["b"]}, "task.jsonl:2: must be"),
        ({**GOOD, "choices": ["b", ""]}, "task.jsonl:2: must be"),
        ({**GOOD, "context": None}, "task.jsonl:2: must be"),
        ({"text": ""}, "task.jsonl:2: must be"),
        ([], "task.jsonl:2: must be"),
        ({"text": "x"}, "has questions and texts"),
        ({"text": "a\ud800"}, "task.jsonl:2: has half of a surrogate pair"),
        ({**GOOD, "choices": ["b", "\udc00"]}, "task.jsonl:2: has half of a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named(line, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_task(written(tmp_path, GOOD, line))
    assert words in str(caught.value)


def test_a_file_without_lines_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no line"):
        read_task(written(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_task(tmp_path / "nowhere.jsonl")


def test_line_separators_of_unicode_stay_in_a_line(tmp_path):
    line = json.dumps({"text": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n"
    assert read_task(written(tmp_path, line, {"text": "d"})).texts == ("a\u2028b\u0085c", "d")


CONTEXTS = [("the old man", " went"), ("the old man ", "went"), ("a", "b"), ("x  ", "  y"), ("the ol", "d man")]


def given(context: str, choices: tuple[str, ...], tokenizer: Any, seq_length: int = 64) -> list[Request]:
    return choice_requests(Question(context, choices, 0), tokenizer, seq_length)[: len(choices)]


@pytest.mark.parametrize(("context", "choice"), CONTEXTS)
def test_continuations_are_tokens_of_the_whole_text(context, choice, tokenizer):
    for request, text in zip(given(context, (choice, "zq"), tokenizer), (choice, "zq"), strict=True):
        ids = [*request.context, *request.continuation]
        assert [token for token in ids if token != tokenizer.eod_id] == tokenizer.encode(context + text)
        assert request.context and request.continuation


@pytest.mark.parametrize(("context", "choice"), CONTEXTS)
def test_all_choices_are_scored_over_the_same_text(context, choice, tokenizer):
    first, second = given(context, (choice, "zq"), tokenizer)
    assert first.context == second.context
    for request, text in ((first, choice), (second, "zq")):
        before = [token for token in request.context if token != tokenizer.eod_id]
        assert request.num_bytes == len((context + text).encode()) - len(tokenizer.decode(before).encode())


def test_joined_tokens_belong_to_the_choices():
    """Pieces of a tokenizer that joins any two letters: the end of the context becomes part of a choice."""
    first, second = given("abc", ("def", " d"), Pairs())
    assert (first.context, first.continuation, first.num_bytes) == ((id_of("ab"),), (id_of("cd"), id_of("ef")), 4)
    assert (second.context, second.continuation, second.num_bytes) == ((id_of("ab"),), (id_of("c "), id_of("d")), 3)


def id_of(piece: str) -> int:
    return int.from_bytes(piece.encode(), "big")


class Pairs:
    eod_id = 0

    def encode(self, text: str) -> list[int]:
        return [id_of(text[at : at + 2]) for at in range(0, len(text), 2)]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(each.to_bytes(2, "big").lstrip(b"\0") for each in ids).decode()


def test_choices_alone_have_the_text_of_the_choices_given(tokenizer):
    requests = choice_requests(Question("the old ", ("man", "sea"), 0), tokenizer, 64)
    assert [list(request.continuation) for request in requests[2:]] == [
        tokenizer.encode(" man"),
        tokenizer.encode(" sea"),
    ]
    assert all(request.context == (tokenizer.eod_id,) for request in requests[2:])


def test_all_choices_see_an_equal_part_of_a_long_context(tokenizer):
    long = " and the old man went to see the sea"
    first, second = given("the house " * 30, (" a", long), tokenizer, 60)
    assert first.context == second.context
    assert len(second.context) + len(second.continuation) == 61


@pytest.mark.parametrize("context", ["", " ", "   "])
def test_an_empty_context_is_the_end_of_a_document(context, tokenizer):
    request, _ = given(context, ("word", "b"), tokenizer)
    assert request.context == (tokenizer.eod_id,)
    assert list(request.continuation) == tokenizer.encode(context + "word")


def test_a_choice_too_long_is_named_by_its_line(tokenizer, tmp_path):
    task = read_task(written(tmp_path, GOOD, {**GOOD, "choices": ["b", "word " * 40]}))
    with pytest.raises(ConfigError, match=r"task.jsonl:2: a choice has \d+ tokens, and the model sees 16 at once"):
        asked_of(task, tokenizer, 16)


def test_texts_are_read_whole_and_once(tokenizer):
    text = "\n".join(make_texts(6))
    asked = asked_of(Task("t", texts=(text, "short")), tokenizer, seq_length=16)
    first = asked.requests[: asked.counts[0]]
    ids = tokenizer.encode(text)
    assert [token for request in first for token in request.continuation] == ids
    assert [request.context[0] for request in first] == [tokenizer.eod_id, *ids[15:-1:16]]
    assert all(len(request.continuation) <= 16 for request in first)
    assert sum(request.num_bytes for request in first) == len(text.encode())


def scored(*values: float) -> list[Scored]:
    return [Scored(value, False) for value in values]


def test_figures_of_questions(tokenizer):
    questions = (Question("c", ("aa", "bbbb"), 0), Question("c", ("aa", "bbbb"), 1))
    # In the first, the short choice is likelier, per byte the long one is, and the context favours the short one.
    results = scored(-4, -6, -9, -6.5, -4, -5, -9, -9)
    found = figures_of(asked_of(Task("t", questions), tokenizer, 16), results)
    assert (found["accuracy"].value, found["accuracy_per_byte"].value) == (0.5, 0.5)
    assert found["accuracy_unconditional"].value == 0.5
    assert found["accuracy"].error == pytest.approx(math.sqrt(0.5 / 2))
    assert found["bits_per_byte"].value == pytest.approx((4 + 5) / math.log(2) / 6)


def test_ways_of_ranking_differ(tokenizer):
    task = Task("t", (Question("c", ("aa", "bbbb"), 1),))
    # Raw, the first is likelier; per byte and beyond the choice alone, the second.
    found = figures_of(asked_of(task, tokenizer, 16), scored(-4, -6, -5, -9))
    values = {name: found[name].value for name in ("accuracy", "accuracy_per_byte", "accuracy_unconditional")}
    assert values == {"accuracy": 0.0, "accuracy_per_byte": 1.0, "accuracy_unconditional": 1.0}
    assert math.isnan(found["accuracy"].error)


def test_bits_per_byte_of_texts(tokenizer):
    texts = ("naïve", "b" * 40)
    counts = [-(-len(tokenizer.encode(text)) // 4) for text in texts]
    results = scored(*[-1.0] * sum(counts))
    found = figures_of(asked_of(Task("t", texts=texts), tokenizer, 4), results)
    assert found["bits_per_byte"].value == pytest.approx(sum(counts) / math.log(2) / (6 + 40))
