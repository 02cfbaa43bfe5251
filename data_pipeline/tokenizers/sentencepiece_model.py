"""SentencePiece models: text to token IDs and back without loss, also where SentencePiece itself loses text."""

import dataclasses
import functools
import hashlib
import importlib.util
import logging
import re
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.base import TokenizerSettings, find_eod, reject_surrogates
from data_pipeline.tokenizers.sentencepiece_file import BPE, UNIGRAM, differences_from_ours
from data_pipeline.tokenizers.word_cache import WordCache

if TYPE_CHECKING:
    from data_pipeline.tokenizers.numba_bpe import NumbaBpe

logger = logging.getLogger(__name__)
SPACE_MARK = "\u2581"  # SentencePiece's mark for a space, so it would decode the character itself as a space
SEGMENT_CHARS = 1 << 16
BULK_CHARS = 1 << 24
"""Starting numba takes about as long as encoding this much text. So it is started if this much is expected, or if
this much is encoded and the amount to come is unknown."""
# Pieces never have a space after another character, so text can be split there without changing the IDs.
SAFE_CUT = re.compile(r"(?<=[^ ])(?= )")


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    name: str
    """As the model spells it: spaces are U+2581."""
    score: float
    is_control: bool
    is_unknown: bool
    is_byte: bool

    @property
    def is_of_text(self) -> bool:
        """Whether it stands for its own text."""
        return not (self.is_control or self.is_unknown or self.is_byte)

    @property
    def text(self) -> str:
        """Its text, or its name if it stands for none."""
        return self.name.replace(SPACE_MARK, " ") if self.is_of_text else self.name


class SentencePieceTokenizer:
    """A SentencePiece model. If `train_tokenizer` made it, `decode(encode(text)) == text` for every text."""

    kind: ClassVar = "sentencepiece"
    file_name: ClassVar = "tokenizer.model"

    def __init__(self, model: bytes, name: str = "tokenizer", settings: TokenizerSettings | None = None) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = self._processor.get_piece_size()
        except RuntimeError:
            self.vocab_size = 0
        if not self.vocab_size:
            raise DataError(
                f"{name}: is not a SentencePiece model (nor a Hugging Face tokenizer.json or a tiktoken file), or is "
                "truncated"
            )
        self.settings, self.eod_id = self._find_eod(name, settings or TokenizerSettings())
        """Follows each document. By default it is SentencePiece's end-of-sentence piece."""
        self._mark_ids = self._byte_ids(SPACE_MARK)
        self._segments = self._cuts_safely()
        self._remembers = bool(self._mark_ids) and self._segments and self.is_bpe
        self._num_chars = 0
        """Characters encoded so far."""
        self._expected_chars = 0
        self._is_bulk = False
        """Whether starting numba was attempted."""
        self._compiled: NumbaBpe | None = None

    def expect(self, num_chars: int) -> None:
        """Set about how many characters will be encoded. For many, numba is used; the IDs stay the same."""
        self._expected_chars = num_chars

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines IDs and text, without what all models made here share. Files with
        equal fingerprints may differ in other settings."""
        digest = hashlib.sha256(struct.pack("<ii", self.vocab_size, self.eod_id))
        for piece, score, *kind in self.pieces:
            raw = piece.encode()
            digest.update(struct.pack("<If???", len(raw), score, *kind) + raw)
        model: bytes = self._processor.serialized_model_proto()
        for message, number, value in differences_from_ours(model, BPE if self.is_bpe else UNIGRAM):
            digest.update(f"{message} {number} {value!r}\n".encode())
        return digest.hexdigest()

    @property
    def is_made_here(self) -> bool:
        """Whether it has the settings of `train_tokenizer`'s models, with which every text comes back."""
        model: bytes = self._processor.serialized_model_proto()
        same = not differences_from_ours(model, BPE if self.is_bpe else UNIGRAM)
        return same and self._segments and bool(self._mark_ids)

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """The vocabulary, in the order of the IDs."""
        ask, ids = self._processor, list(range(self.vocab_size))
        kinds = ask.is_control(ids), ask.is_unknown(ids), ask.is_byte(ids)
        return [Piece(*values) for values in zip(ask.id_to_piece(ids), ask.get_score(ids), *kinds, strict=True)]

    def encode(self, text: str) -> list[int]:
        """The IDs of a text, with nothing added before or after it."""
        ids: list[int] = self.encode_batch([text], num_threads=1)[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[npt.NDArray[np.int32]]:
        """The IDs of each text. The result does not depend on the number of threads."""
        parts: list[str] = []
        plans = [self._plan(text, parts) for text in texts]
        try:
            encoded = self._by_words(parts) if self._remembers else self._whole(parts, num_threads)
        except (RuntimeError, TypeError, UnicodeEncodeError):  # depends on the version of sentencepiece
            for text in texts:
                reject_surrogates(text)
            raise
        return [self._join(plan, encoded) for plan in plans]

    def _whole(self, parts: list[str], num_threads: int) -> list[npt.NDArray[np.int32]]:
        # Arrays rather than lists: building lists would block the other threads.
        encoded: list[npt.NDArray[np.int32]] = self._processor.encode(
            parts, return_type="numpy", num_threads=num_threads
        )
        return encoded

    def _by_words(self, parts: list[str]) -> list[npt.NDArray[np.int32]]:
        """BPE only: a unigram model sums scores along the text, and may resolve near-ties differently in a part of
        it."""
        self._num_chars += sum(map(len, parts))
        if not self._is_bulk and max(self._num_chars, self._expected_chars) > BULK_CHARS:
            self._is_bulk = True
            self._compiled = self._compile(parts)
        return (self._compiled or self._word_cache).encode(parts)

    @functools.cached_property
    def _word_cache(self) -> WordCache:
        return WordCache((piece for _, piece, _ in self._pieces_of_text()), self._encode_words)

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(words, num_threads=1)  # every core has a process already
        return ids

    def _compile(self, sample: list[str]) -> "NumbaBpe | None":
        """A numba encoder, several times as fast, if numba is installed and it gives the same IDs."""
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if importlib.util.find_spec("numba") is None or not all(map(self._processor.is_byte, byte_ids)):
            return None
        try:
            from data_pipeline.tokenizers.numba_bpe import NumbaBpe, matches_reference
        except Exception as error:  # an incompatible numpy, or no folder for its cache
            logger.warning("numba is installed but not used: %s", error)
            return None
        pieces = self._pieces_of_text()
        encoder = NumbaBpe(pieces, byte_ids)
        is_proven = matches_reference(encoder, [piece for _, piece, _ in pieces], self._encode_words, sample)
        return encoder if is_proven else None

    def _pieces_of_text(self) -> list[tuple[int, str, float]]:
        """IDs, pieces (with spaces in place of their marks) and scores of all pieces that text can become, except
        bytes."""
        return [(index, piece.text, piece.score) for index, piece in enumerate(self.pieces) if piece.is_of_text]

    @property
    def is_bpe(self) -> bool:
        """BPE pieces have their ranks as scores; unigram pieces have logarithms."""
        scores = [score for _, score, *_ in self.pieces]
        return min(scores) < 0 and all(score == int(score) for score in scores)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode IDs. End-of-document pieces are left out, and invalid UTF-8 becomes U+FFFD."""
        text: str = self._processor.decode([int(index) for index in ids])
        return text

    def _find_eod(self, name: str, settings: TokenizerSettings) -> tuple[TokenizerSettings, int]:
        """The settings with the name of the piece if it is not the usual one, and its ID."""
        usual: int = self._processor.eos_id()
        if settings.eod is not None:
            if settings.eod == usual:
                return dataclasses.replace(settings, eod=None), usual
            control = {piece: index for index, (piece, _, is_control, *_) in enumerate(self.pieces) if is_control}
            eod = find_eod(name, control, settings.eod, "give one of them as tokenizer.eod")
            return dataclasses.replace(settings, eod=eod), control[eod]
        if usual < 0:
            raise DataError(f"{name}: has no end-of-sentence piece to end documents with", "train it with eos_id >= 0")
        return settings, usual

    def _plan(self, text: str, parts: list[str]) -> list[int | None]:
        """Append the parts of one text to `parts`. Returns their indices in order, with None for each U+2581 between
        them."""
        plan: list[int | None] = []
        for number, stretch in enumerate(text.split(SPACE_MARK) if self._mark_ids else [text]):
            if number:
                plan.append(None)
            for segment in _cut(stretch) if self._segments and not self._remembers else [stretch]:
                plan.append(len(parts))
                parts.append(segment)
        return plan

    def _join(self, plan: list[int | None], encoded: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
        if len(plan) == 1 and plan[0] is not None:
            return encoded[plan[0]]
        mark = np.array(self._mark_ids, dtype=np.int32)
        return np.concatenate([mark if number is None else encoded[number] for number in plan])

    def _byte_ids(self, text: str) -> list[int]:
        """The byte pieces of a text; empty if the model has none."""
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
        return ids if all(self._processor.is_byte(index) for index in ids) else []

    def _cuts_safely(self) -> bool:
        """Whether encoding both sides of a SAFE_CUT gives the IDs of the whole. Models made elsewhere may differ."""
        if any(SPACE_MARK in piece.lstrip(SPACE_MARK) for piece, *_ in self.pieces):
            return False
        # It is reproduced only if the model does not normalize, and its sides differ from the whole if a space is added
        # before each text.
        probe = " \n  ﬁ\t e\u0301 "
        whole, left, right = self._processor.encode([probe, probe[:2], probe[2:]], out_type=int)
        return bool(whole == left + right and self._processor.decode(whole) == probe)


def _cut(text: str) -> Iterator[str]:
    """Split a long text, so that one document can use several threads and little memory."""
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        found = SAFE_CUT.search(text, start + SEGMENT_CHARS)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text
