"""The word cache and numba's merges give the IDs of SentencePiece."""

import concurrent.futures
import importlib.util

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.tokenizers import sentencepiece_model, word_cache
from data_pipeline.tokenizers.numba_bpe import NumbaBpe
from data_pipeline.tokenizers.sentencepiece_model import SPACE_MARK, SentencePieceTokenizer
from tests.support.corpus import make_texts
from tests.unit.data_pipeline.tokenizers.trained_here import AWKWARD, trained

WORDS = st.one_of(st.text(), st.text(alphabet=" \n\tab=0日é"), st.sampled_from([*AWKWARD, "ba " * 40, "x" * 300]))


def fresh_word_cache(tokenizer):
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
        memory = fresh_word_cache(tokenizer)
        for _ in range(2):
            found = memory.encode(parts)
            assert [ids.tolist() for ids in found] == [ids.tolist() for ids in tokenizer._whole(parts, 1)]


@pytest.mark.parametrize("size", ["usual", "small", "compiled"])
def test_threads_can_share_the_word_cache(monkeypatch, size):
    if size == "small":  # the cache is cleared often
        monkeypatch.setattr(word_cache, "MAX_WORDS", 500)
    tokenizer = trained("bpe")
    memory = fresh_word_cache(tokenizer) if size != "compiled" else compiled(tokenizer, num_slots=1 << 9)
    texts = [make_texts(20, seed=seed) for seed in range(24)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(memory.encode, texts))
    for of_thread, own in zip(found, texts, strict=True):
        assert [ids.tolist() for ids in of_thread] == [ids.tolist() for ids in tokenizer._whole(own, 1)]


def test_a_failure_leaves_the_word_cache_correct(monkeypatch):
    tokenizer = trained("bpe")
    memory = fresh_word_cache(tokenizer)
    texts = ["a word, and one that is longer than all keys: " + "ab" * 20]
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_encode", lambda words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memory.encode(texts)
    memory.encode(["other words"])
    assert memory.encode(texts)[0].tolist() == tokenizer._whole(texts, 1)[0].tolist()


def test_the_word_cache_is_bounded(monkeypatch):
    memory = fresh_word_cache(trained("bpe"))
    memory.encode(make_texts(30, seed=9))
    assert memory._num_words > 50
    monkeypatch.setattr(word_cache, "MAX_WORDS", 50)
    monkeypatch.setattr(word_cache, "MAX_BYTES", 5000)
    for text in make_texts(30, seed=9):
        memory.encode([text, "x" * 1000])
        assert memory._num_words <= 51 and memory._num_bytes <= 5000 and sum(map(len, memory._long)) <= 5000
