"""The exported tokenizer gives transformers the IDs that training saw."""

import functools
import json
import random
from pathlib import Path

import pytest

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizers.loading import TokenizerFiles
from data_pipeline.tokenizers.training import train_tokenizer
from pretrain.config.errors import UserError
from pretrain.export.tokenizer_json import different_ids, write_tokenizer
from tests.support.corpus import make_texts
from tests.support.tokenizers import END, byte_level_bpe, write_tiktoken

pytest.importorskip("tokenizers", reason="needs the extra `export`")

WORDS = ("def f(x):\n    return  x", "\u2581", "\u2585", "</s>", "<unk>", "<0x41>", "=" * 1000, " " * 300, "\r\n\t")
PLANES = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x600, 0x700),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x20100),
    (1, 32),
)
CODE = [Path(module.__file__).read_text() for module in (functools, json, random)]


def hostile_texts(count: int, seed: int = 0) -> list[str]:
    """Strings of every plane of Unicode, runs of spaces, and the names of control pieces."""
    choose = random.Random(seed)

    def character() -> str:
        return chr(choose.randint(*choose.choice(PLANES)))

    def stretch() -> str:
        kind = choose.random()
        if kind < 0.3:
            return choose.choice(WORDS)
        if kind < 0.5:
            return " " * choose.randint(1, 4)
        return "".join(character() for _ in range(choose.randint(1, 9)))

    return ["".join(stretch() for _ in range(choose.randint(0, 9))) for _ in range(count)]


@functools.cache
def model(kind: str) -> TokenizerFiles:
    config = TokenizerConfig(kind=kind, vocab_size=700, sample_bytes=1 << 20, path=None, eod=None, seed=0)
    texts = [*make_texts(40), *CODE]
    return TokenizerFiles("tokenizer.model", "tokenizer.model", train_tokenizer(lambda: texts, config), b"")


def test_bpe_ids_are_equal_for_hostile_text(tmp_path):
    files = model("bpe")
    write_tokenizer(files, tmp_path, seq_length=64)
    assert different_ids(files.load(), tmp_path, [*hostile_texts(3000), *make_texts(20, seed=1)]) == (0, 0)


@pytest.mark.full
def test_bpe_ids_are_equal_for_100_000_strings(tmp_path):
    files = model("bpe")
    write_tokenizer(files, tmp_path, seq_length=64)
    assert different_ids(files.load(), tmp_path, hostile_texts(100_000, seed=2)) == (0, 0)


def test_unigram_text_always_comes_back(tmp_path):
    files = model("unigram")
    assert "other IDs" in write_tokenizer(files, tmp_path, seq_length=64)
    texts = hostile_texts(1000)
    others, lost = different_ids(files.load(), tmp_path, texts)
    assert lost == 0
    assert others < len(texts) // 10


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_name_of_a_control_piece_stays_text(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
    files = model(kind)
    write_tokenizer(files, tmp_path, seq_length=64)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a</s>b", "<unk>", "<0x41>", " x", "", "a  b\u2581"):
        assert read(text)["input_ids"] == files.load().encode(text)
    assert read.eos_token_id == files.load().eod_id
    assert (read.bos_token, read.model_max_length) == (None, 64)


def test_a_tokenizer_json_keeps_its_ids(tmp_path):
    added = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": END, "type_id": 0}}], "pair": []}
    record = json.loads(byte_level_bpe()) | {"post_processor": added}
    files = TokenizerFiles("tokenizer.json", "tokenizer.json", json.dumps(json.loads(byte_level_bpe())).encode(), b"")
    given = TokenizerFiles("tokenizer.json", "tokenizer.json", json.dumps(record).encode(), b"")
    write_tokenizer(given, tmp_path, seq_length=64)
    assert different_ids(files.load(), tmp_path, [*hostile_texts(300), f"a{END}b"])[0] == 0


def test_a_tiktoken_file_is_refused(tmp_path):
    files = TokenizerFiles.read(write_tiktoken(tmp_path / "some.tiktoken"))
    with pytest.raises(UserError, match="tiktoken file"):
        write_tokenizer(files, tmp_path / "out", seq_length=64)
