"""Fingerprints of SentencePiece models cover exactly what decides IDs and the text of IDs."""

import io

import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data_pipeline.tokenizers.sentencepiece_file import BPE, UNIGRAM, differences_from_ours
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from tests.support.corpus import make_texts, tokenizer_config

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6


def plain_model():
    """A model as `train_tokenizer` makes it, for any version of the package."""
    made = ModelProto()
    made.pieces.add(piece="<unk>", type=2)
    made.pieces.add(piece="</s>", type=CONTROL)
    for byte in range(256):
        made.pieces.add(piece=f"<0x{byte:02X}>", type=BYTE)
    for rank, piece in enumerate(["ab", "abc", "a", "b", "c"]):
        made.pieces.add(piece=piece, score=-rank)
    made.trainer_spec.model_type = BPE
    made.trainer_spec.byte_fallback = True
    made.trainer_spec.eos_id, made.trainer_spec.bos_id = 1, -1
    made.normalizer_spec.add_dummy_prefix = made.normalizer_spec.remove_extra_whitespaces = False
    return made


def fingerprint(made):
    return SentencePieceTokenizer(made.SerializeToString()).fingerprint


@pytest.fixture(scope="module")
def character_map():
    """The map of SentencePiece's default normalization, NFKC with changes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(9)), model_writer=model, vocab_size=50, minloglevel=3
    )
    return ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap


CHANGES = {
    "model type": lambda made: setattr(made.trainer_spec, "model_type", UNIGRAM),
    "suffix": lambda made: setattr(made.trainer_spec, "treat_whitespace_as_suffix", True),
    "surface of the unknown": lambda made: setattr(made.trainer_spec, "unk_surface", "?"),
    "prefix": lambda made: setattr(made.normalizer_spec, "add_dummy_prefix", True),
    "whitespace": lambda made: setattr(made.normalizer_spec, "remove_extra_whitespaces", True),
    "no escape": lambda made: setattr(made.normalizer_spec, "escape_whitespaces", False),
    "user-defined piece": lambda made: setattr(made.pieces[258], "type", USER_DEFINED),
    "unused piece": lambda made: setattr(made.pieces[258], "type", UNUSED),
    "other unused piece": lambda made: setattr(made.pieces[259], "type", UNUSED),
}


def test_fingerprints_differ_in_all_that_decides(character_map):
    seen = {"as made here": fingerprint(plain_model())}
    for name, change in CHANGES.items():
        made = plain_model()
        change(made)
        seen[name] = fingerprint(made)
    for spec in ("normalizer_spec", "denormalizer_spec"):
        made = plain_model()
        getattr(made, spec).precompiled_charsmap = character_map
        seen[spec] = fingerprint(made)
    assert len(set(seen.values())) == len(seen), seen


def test_fingerprints_ignore_irrelevant_settings_and_spelling():
    first = fingerprint(plain_model())
    made = plain_model()
    made.trainer_spec.num_threads, made.trainer_spec.input[:] = 99, ["x" * 300]
    made.trainer_spec.differential_privacy_noise_level = 0.5
    made.normalizer_spec.name, made.normalizer_spec.escape_whitespaces = "other", True
    made.trainer_spec.unk_surface, made.trainer_spec.treat_whitespace_as_suffix = " \u2047 ", False
    made.denormalizer_spec.precompiled_charsmap = b""
    made.pieces[258].type = NORMAL
    assert fingerprint(made) == first


@pytest.mark.parametrize(("kind", "model_type"), [("bpe", BPE), ("unigram", UNIGRAM)])
def test_models_trained_here_have_no_differences(kind, model_type):
    model = train_tokenizer(lambda: make_texts(20), tokenizer_config(kind=kind))
    assert differences_from_ours(model, model_type) == []


def test_fingerprints_of_models_trained_here_never_change():
    """They are stored in manifests of datasets and checkpoints."""
    assert fingerprint(plain_model()) == "e63e8c8920f02bf8ed691356a801a35d9a168c785d24a3c7c3ac36e7f06b07e9"
