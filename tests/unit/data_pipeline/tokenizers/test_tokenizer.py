import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.sentencepiece_model import SEGMENT_CHARS, SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from pretrain.generation.growing_text import GrowingText
from tests.support.corpus import make_texts, tokenizer_config
from tests.unit.data_pipeline.tokenizers.trained_here import AWKWARD, trained

KINDS = ["bpe", "unigram"]


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


def test_rare_characters_fall_back_to_bytes():
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


def test_models_not_trained_here_are_not_split_if_ids_change(tmp_path):
    texts = make_texts(30, seed=4)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "m"), vocab_size=300, minloglevel=3
    )  # SentencePiece's defaults: a space before the text, runs of spaces squeezed
    tokenizer = load_tokenizer(tmp_path / "m.model")
    text = "\n".join(make_texts(200, seed=5))
    assert len(text) > SEGMENT_CHARS
    growing = GrowingText(tokenizer.decode, tokenizer.encode("ba"))
    assert "".join(growing.add(token) for token in tokenizer.encode("ba")) == " ba", "the space was dropped"
    assert tokenizer.encode(text) == tokenizer._processor.encode(text, out_type=int)
