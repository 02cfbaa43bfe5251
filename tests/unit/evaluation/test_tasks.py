"""Tasks: what a line may be, what is asked of the model, and the figures."""

import json
import math
from pathlib import Path

import pytest

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from pretrain.config.errors import ConfigError
from pretrain.evaluation.figures import figures_of
from pretrain.evaluation.scoring import Scored
from pretrain.evaluation.tasks import Question, Task, read_task, request_of, requests_of
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


def test_continuations_are_tokens_of_the_whole_text(tokenizer):
    for context, continuation in (("the old man", " went"), ("the old man ", "went"), ("a", "b"), ("x  ", "  y")):
        request = request_of(context, continuation, tokenizer)
        assert [*request.context, *request.continuation] == tokenizer.encode(context + continuation)
        assert request.context and request.continuation


@pytest.mark.parametrize("context", ["", " ", "   "])
def test_an_empty_context_is_the_end_of_a_document(context, tokenizer):
    request = request_of(context, "word", tokenizer)
    assert request.context == (tokenizer.eod_id,)
    assert list(request.continuation) == tokenizer.encode(context + "word")


def test_texts_are_read_whole_and_once(tokenizer):
    text = "\n".join(make_texts(6))
    requests = requests_of(Task("t", texts=(text, "short")), tokenizer, seq_length=16)
    ids = tokenizer.encode(text)
    assert [token for request in requests[:-1] for token in request.continuation] == ids
    assert [request.context[0] for request in requests[:-1]] == [tokenizer.eod_id, *ids[15:-1:16]]
    assert all(len(request.continuation) <= 16 for request in requests)


def scored(*values: float) -> list[Scored]:
    return [Scored(value, False) for value in values]


def test_figures_of_questions(tokenizer):
    questions = (Question("c", ("aa", "bbbb"), 0), Question("c", ("aa", "bbbb"), 1))
    # In the first, the short choice is likelier, per byte the long one is, and the context favours the short one.
    results = scored(-4, -6, -9, -6.5, -4, -5, -9, -9)
    found = figures_of(Task("t", questions), results, tokenizer, 16)
    assert (found["accuracy"].value, found["accuracy_per_byte"].value) == (0.5, 0.5)
    assert found["accuracy_unconditional"].value == 0.5
    assert found["accuracy"].error == pytest.approx(math.sqrt(0.5 / 2))
    assert found["bits_per_byte"].value == pytest.approx((4 + 5) / math.log(2) / 6)


def test_ways_of_ranking_differ(tokenizer):
    task = Task("t", (Question("c", ("aa", "bbbb"), 1),))
    found = figures_of(task, scored(-4, -6, -5, -9), tokenizer, 16)
    values = {name: found[name].value for name in ("accuracy", "accuracy_per_byte", "accuracy_unconditional")}
    assert values == {"accuracy": 0.0, "accuracy_per_byte": 1.0, "accuracy_unconditional": 1.0}
    assert math.isnan(found["accuracy"].error)


def test_bits_per_byte_of_texts(tokenizer):
    texts = ("naïve", "b" * 40)
    counts = [-(-len(tokenizer.encode(text)) // 4) for text in texts]
    results = scored(*[-1.0] * sum(counts))
    found = figures_of(Task("t", texts=texts), results, tokenizer, 4)
    assert found["bits_per_byte"].value == pytest.approx(sum(counts) / math.log(2) / (6 + 40))
