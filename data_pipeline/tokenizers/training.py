"""Trains a SentencePiece tokenizer that can reproduce every text."""

import collections
import io
import re
from collections.abc import Callable, Iterable

import sentencepiece

from data_pipeline.config import TokenizerConfig
from data_pipeline.errors import DataError

UNKNOWN_MARK = "\u2585"  # the trainer skips a whole document that contains it
TRAINING_THREADS = 4  # fixed: unigram pieces depend on it, and it is stored in the model file
RESERVED_PIECES = 258  # 256 byte pieces, <unk>, </s>


def train_tokenizer(documents: Callable[[], Iterable[str]], config: TokenizerConfig) -> bytes:
    """Train on whole documents. Returns the bytes of a SentencePiece .model.

    Equal documents in equal order give equal bytes on every machine.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Whole documents, because with a file or single lines the trainer would never see a newline.
            sentence_iterator=(document.replace(UNKNOWN_MARK, " ") for document in documents()),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=_character_coverage(documents, config.vocab_size),
            max_sentence_length=1 << 30,  # the default silently drops longer documents
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=TRAINING_THREADS,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _training_fault(str(error), config) from None
    return model.getvalue()


def _character_coverage(documents: Callable[[], Iterable[str]], vocab_size: int) -> float:
    """The share of the text whose characters get pieces of their own: all of it, unless those characters would fill
    more than half of the vocabulary. Rarer characters are spelled as byte pieces."""
    room = (vocab_size - RESERVED_PIECES) // 2
    characters: set[str] = set()
    for document in documents():
        characters.update(document)
    if room <= 0 or len(characters) <= room:
        return 1.0
    counts: collections.Counter[str] = collections.Counter()
    for document in documents():
        counts.update(document)
    kept = sum(count for _, count in counts.most_common(room))
    share = (kept - 0.5) / counts.total()  # the trainer adds characters until it reaches this share
    return max(share, 0.98)  # the lowest value it accepts


def _training_fault(message: str, config: TokenizerConfig) -> DataError:
    prefix = f"tokenizer.vocab_size={config.vocab_size}: "
    if found := re.search(r"too high .*<= (\d+)", message):
        return DataError(
            f"{prefix}the text yields at most {found[1]} pieces",
            f"set tokenizer.vocab_size={found[1]} or less",
            "give more text",
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"{prefix}too small for the characters and byte pieces of this text",
            f"set tokenizer.vocab_size to more than {found[1]}",
        )
    return DataError(f"{prefix}SentencePiece cannot train a {config.kind} tokenizer on this text: {message}")
