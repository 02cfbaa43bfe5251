import concurrent.futures
import functools
import importlib.util
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.tokenizers import sentencepiece_model, word_cache
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.numba_bpe import NumbaBpe
from data_pipeline.tokenizers.sentencepiece_model import SEGMENT_CHARS, SPACE_MARK, SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from pretrain.generation.generate import text_after
from tests.support.corpus import make_texts, tokenizer_config

KINDS = ["bpe", "unigram"]


@functools.cache
def trained(kind):
    texts = [*make_texts(60, seed=3), "日本語の文章 and emoji 🙂🙂 \u2581 \u2585 </s> <unk> <0x41>\r\n\x00" * 20]
    return SentencePieceTokenizer(train_tokenizer(lambda: texts, tokenizer_config(kind=kind)))


AWKWARD = [
    "",
    " ",
    "  \n\n\t x \n ",
    "</s><unk><0x41><s><pad>",
    "\u2581",
    "a\u2581\u2581 \u2581b",
    "\u2585\u2047",
    "\ufeff\r\n\x00\x1b[0m\x7f",
    "e\u0301 é ﬁ ½ Ａ",
    "def f(x):\n\treturn  x ** 12345\n",
    "漢字かな交じり文、한국어 🏳️‍🌈👨‍👩‍👧‍👦\U0010ffff\ue000",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_round_trips(kind, text):
    assert trained(kind).decode(trained(kind).encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet="ab \n\t\u2581\u2585</s>unk0x1"),
        st.lists(st.sampled_from(AWKWARD)).map("".join),
    )
)
@example(text="\u2581 \u2581")
def test_any_text_round_trips(kind, text):
    ids = trained(kind).encode(text)
    assert trained(kind).decode(ids) == text
    assert trained(kind).eod_id not in ids
    assert all(0 <= index < trained(kind).vocab_size for index in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_point_round_trips(kind):
    code_points = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    assert len(code_points) == 1_112_064
    blocks = ["".join(code_points[start : start + 4096]) for start in range(0, len(code_points), 4096)]
    tokenizer = trained(kind)
    for block, ids in zip(blocks, tokenizer.encode_batch(blocks, num_threads=2), strict=True):
        assert tokenizer.decode(ids.tolist()) == block


@pytest.mark.parametrize("kind", KINDS)
def test_source_code_round_trips(kind):
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes().decode()
    assert trained(kind).decode(trained(kind).encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_segments_and_threads_do_not_change_ids(kind):
    text = "\n".join(make_texts(400, seed=5)) + "x" * (SEGMENT_CHARS + 5) + "  y"
    assert len(text) > 4 * SEGMENT_CHARS
    plain = trained(kind)._processor.encode(text, out_type=int)
    assert trained(kind).encode(text) == plain
    batch = trained(kind).encode_batch([text, "", text], num_threads=3)
    assert [ids.tolist() for ids in batch] == [plain, [], plain]


WORDS = st.one_of(st.text(), st.text(alphabet=" \n\tab=0日é"), st.sampled_from([*AWKWARD, "ba " * 40, "x" * 300]))


def fresh_memory(tokenizer):
    return SentencePieceTokenizer._word_cache.func(tokenizer)


def compiled(tokenizer, **sizes):
    ids = [tokenizer._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    return NumbaBpe(tokenizer._pieces_of_text(), ids, **sizes)


@pytest.mark.parametrize("sizes", [{}, {"num_slots": 16, "max_bytes": 512}], ids=["usual", "small"])
@settings(max_examples=200, deadline=None)
@given(texts=st.lists(WORDS, max_size=6))
@example(texts=["é" * 31 + "a", "é" * 32, "é" * 33, "ab" * 5000])  # around the length of the longest cached word
@example(
    texts=["a" * 7 + "b" * count + end for count in range(1, 20) for end in "bc"]
)  # around the length from which bytes are compared
@example(texts=["a", "a\x00", "a\x00\x00", *("\x00" * count for count in (7, 8, 9, 14, 15, 16, 17))])
def test_numba_gives_the_ids_of_sentencepiece(sizes, texts):
    tokenizer = trained("bpe")
    parts = [part for text in texts for part in text.split(SPACE_MARK)]
    encoder = compiled(tokenizer, **sizes)
    for _ in range(2):
        found = encoder.encode(parts)
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in tokenizer._whole(parts, 1)]


def test_numba_gives_the_ids_of_sentencepiece_on_text():
    tokenizer, texts = trained("bpe"), [*make_texts(80, seed=5), *AWKWARD]
    for encoder in (compiled(tokenizer), compiled(tokenizer, num_slots=1 << 8)):
        parts = [part for text in texts for part in text.split(SPACE_MARK)]
        assert [ids.tolist() for ids in encoder.encode(parts)] == [ids.tolist() for ids in tokenizer._whole(parts, 1)]


def bulk_encoder(tokenizer, monkeypatch):
    """The encoder that is used after much text."""
    monkeypatch.setattr(sentencepiece_model, "BULK_CHARS", 100)
    texts = make_texts(20, seed=5)
    found = tokenizer.encode_batch(texts, num_threads=1)
    assert [ids.tolist() for ids in found] == tokenizer._processor.encode(texts)
    return tokenizer._compiled


def fresh(tokenizer):
    return SentencePieceTokenizer(tokenizer._processor.serialized_model_proto())


def test_numba_encodes_large_texts_if_installed(monkeypatch):
    tokenizer = fresh(trained("bpe"))
    tokenizer.encode("little text")
    assert tokenizer._compiled is None and isinstance(bulk_encoder(tokenizer, monkeypatch), NumbaBpe)
    assert bulk_encoder(fresh(trained("unigram")), monkeypatch) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bulk_encoder(fresh(trained("bpe")), monkeypatch) is None


def test_numba_starts_at_once_if_much_text_is_expected():
    tokenizer = fresh(trained("bpe"))
    tokenizer.expect(sentencepiece_model.BULK_CHARS)
    tokenizer.encode("first")
    assert tokenizer._compiled is None
    tokenizer.expect(sentencepiece_model.BULK_CHARS + 1)
    assert tokenizer.encode("little text") == tokenizer._processor.encode("little text")
    assert isinstance(tokenizer._compiled, NumbaBpe)


def test_numba_is_not_used_if_its_ids_differ(monkeypatch, caplog):
    real = NumbaBpe.encode
    monkeypatch.setattr(NumbaBpe, "encode", lambda self, texts: [ids[:-1] for ids in real(self, texts)])
    assert bulk_encoder(fresh(trained("bpe")), monkeypatch) is None
    assert "differ from sentencepiece's on" in caplog.text


def test_user_defined_symbols_fail_the_check_against_reference(tmp_path, monkeypatch):
    given = {"user_defined_symbols": ["hello_"], "vocab_size": 420, "model_type": "bpe", "byte_fallback": True}
    whole = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    file = tmp_path / "own"
    texts = [*make_texts(60, seed=3), "hello_there " * 50]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(file), minloglevel=2, **given, **whole
    )
    tokenizer = SentencePieceTokenizer(file.with_suffix(".model").read_bytes())
    texts = ["hello_there", "xhello_", "hell"]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts, 1)] == tokenizer._processor.encode(texts)
    assert bulk_encoder(tokenizer, monkeypatch) is None
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts, 1)] == tokenizer._processor.encode(texts)


@pytest.mark.parametrize("small", [False, True])
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(WORDS, max_size=6))
@example(texts=["a", "a\x00", "a\x00\x00", "\x00" * 14, "\x00" * 15, "\x00" * 16, "\x00" * 17])
def test_the_word_cache_gives_the_ids_of_the_whole_text(small, texts):
    tokenizer = trained("bpe")
    assert tokenizer._remembers and not trained("unigram")._remembers
    parts = [part for text in texts for part in text.split(SPACE_MARK)]
    with pytest.MonkeyPatch.context() as patch:
        if small:  # slots collide, chunks end inside words, and the cache is cleared often
            for name, value in {"CHUNK_BYTES": 7, "MAX_WORDS": 20, "MAX_NUMBERS": 28, "SLOTS_LOG2": 5}.items():
                patch.setattr(word_cache, name, value)
        memory = fresh_memory(tokenizer)
        for _ in range(2):
            found = memory.encode(parts)
            assert [ids.tolist() for ids in found] == [ids.tolist() for ids in tokenizer._whole(parts, 1)]


@pytest.mark.parametrize("size", ["usual", "small", "compiled"])
def test_threads_can_share_the_word_cache(monkeypatch, size):
    if size == "small":  # the cache is cleared often
        monkeypatch.setattr(word_cache, "MAX_WORDS", 500)
    tokenizer = trained("bpe")
    memory = fresh_memory(tokenizer) if size != "compiled" else compiled(tokenizer, num_slots=1 << 9)
    texts = [make_texts(20, seed=seed) for seed in range(24)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(memory.encode, texts))
    for of_thread, own in zip(found, texts, strict=True):
        assert [ids.tolist() for ids in of_thread] == [ids.tolist() for ids in tokenizer._whole(own, 1)]


def test_a_failure_leaves_the_word_cache_correct(monkeypatch):
    tokenizer = trained("bpe")
    memory = fresh_memory(tokenizer)
    texts = ["a word, and one that is longer than all keys: " + "ab" * 20]
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_encode", lambda words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memory.encode(texts)
    memory.encode(["other words"])
    assert memory.encode(texts)[0].tolist() == tokenizer._whole(texts, 1)[0].tolist()


def test_the_word_cache_is_bounded(monkeypatch):
    memory = fresh_memory(trained("bpe"))
    memory.encode(make_texts(30, seed=9))
    assert memory._num_words > 50
    monkeypatch.setattr(word_cache, "MAX_WORDS", 50)
    monkeypatch.setattr(word_cache, "MAX_BYTES", 5000)
    for text in make_texts(30, seed=9):
        memory.encode([text, "x" * 1000])
        assert memory._num_words <= 51 and memory._num_bytes <= 5000 and sum(map(len, memory._long)) <= 5000


@pytest.mark.parametrize("kind", KINDS)
def test_training_again_gives_equal_bytes(kind):
    texts = make_texts(40, seed=9)
    first, second = (train_tokenizer(lambda: iter(texts), tokenizer_config(kind=kind)) for _ in range(2))
    assert first == second
    assert SentencePieceTokenizer(first).fingerprint == SentencePieceTokenizer(second).fingerprint
    other = train_tokenizer(lambda: texts[1:], tokenizer_config(kind=kind))
    assert SentencePieceTokenizer(other).fingerprint != SentencePieceTokenizer(first).fingerprint


def test_training_learns_newlines_and_separates_digits():
    texts = [*make_texts(20), "if x:\n    return 12\n" * 50, "é\u2585\n" * 3]
    tokenizer = SentencePieceTokenizer(train_tokenizer(lambda: texts, tokenizer_config(vocab_size=400)))
    pieces = [tokenizer._processor.id_to_piece(index) for index in range(tokenizer.vocab_size)]
    assert pieces[:2] == ["<unk>", "</s>"] and tokenizer.eod_id == 1
    assert any("\n" in piece and len(piece) > 1 for piece in pieces)
    assert "é" in pieces, "a document with U+2585 was skipped"
    assert "1" in pieces and "12" not in pieces


def test_long_documents_train_the_tokenizer():
    text = "unmistakable " * 2000
    tokenizer = SentencePieceTokenizer(train_tokenizer(lambda: [text], tokenizer_config(vocab_size=290)))
    assert len(tokenizer.encode(" unmistakable")) == 1


def test_rare_characters_fall_back_to_bytes_when_there_are_too_many():
    text = "common words again and again\n" * 3000 + "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    tokenizer = SentencePieceTokenizer(train_tokenizer(lambda: [text], tokenizer_config(vocab_size=400)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(" again")) == 1, "characters left no room for words"


@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_vocabulary_size_names_the_limit(kind):
    texts = make_texts(10, seed=2)
    with pytest.raises(
        DataError, match=r"tokenizer.vocab_size=100000: the text yields at most (\d+) pieces\n  hint: set"
    ) as e:
        train_tokenizer(lambda: texts, tokenizer_config(kind=kind, vocab_size=100000))
    bound = int(str(e.value).split("at most ")[1].split()[0])
    assert (
        SentencePieceTokenizer(train_tokenizer(lambda: texts, tokenizer_config(kind=kind, vocab_size=bound))).vocab_size
        == bound
    )
    with pytest.raises(DataError, match=r"tokenizer.vocab_size=100: too small .*\n.* more than \d+"):
        train_tokenizer(lambda: texts, tokenizer_config(kind=kind, vocab_size=100))


def test_a_lone_surrogate_is_refused_and_named():
    with pytest.raises(DataError, match=r"character 2 is a lone surrogate \('\\ud800'\)"):
        trained("bpe").encode("ab\ud800")


def test_files_that_are_not_tokenizers_are_named(tmp_path):
    with pytest.raises(DataError, match=r"missing.model: the tokenizer cannot be read \(No such file or directory\)"):
        load_tokenizer(tmp_path / "missing.model")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"junk.model: is not a SentencePiece model"):
        load_tokenizer(tmp_path / "junk.model")
    (tmp_path / "good.model").write_bytes(train_tokenizer(lambda: ["abc abc"], tokenizer_config(vocab_size=262)))
    with pytest.raises(DataError, match=r"good.model: is not the tokenizer that the dataset's manifest names"):
        load_tokenizer(tmp_path / "good.model", fingerprint="0" * 64)


def test_other_models_are_not_split_if_that_changes_ids(tmp_path):
    texts = make_texts(30, seed=4)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "m"), vocab_size=300, minloglevel=3
    )  # SentencePiece's defaults: a space before the text, runs of spaces squeezed
    tokenizer = load_tokenizer(tmp_path / "m.model")
    text = "\n".join(make_texts(200, seed=5))
    assert len(text) > SEGMENT_CHARS
    assert text_after(tokenizer.encode("ba"), tokenizer.encode("ba"), tokenizer) == " ba", "the space was dropped"
    assert tokenizer.encode(text) == tokenizer._processor.encode(text, out_type=int)
