"""Text to token ids and back without loss: SentencePiece with byte pieces, and what it drops silently mended."""

import collections
import hashlib
import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_pipeline.config import TokenizerConfig
from data_pipeline.errors import DataError

SPACE_MARK = "\u2581"  # stands for a space inside SentencePiece, so that the character itself would come back as one
UNKNOWN_MARK = "\u2585"  # the trainer skips a whole document that holds it
SEGMENT_CHARS = 1 << 16
# No piece has a space after another character, so text may be cut there without changing any id.
SAFE_CUT = re.compile(r"(?<=[^ ])(?= )")
TRAINING_THREADS = 4  # fixed: unigram pieces depend on it, and the model file records it
RESERVED_PIECES = 258  # 256 byte pieces, <unk>, </s>


class Tokenizer:
    """A SentencePiece model; `decode(encode(text)) == text` for every text if `train_tokenizer` made it."""

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise DataError(f"{name}: is not a SentencePiece model, or is cut short") from None
        self.vocab_size: int = self._processor.get_piece_size()
        self.eod_id: int = self._processor.eos_id()
        """Follows each document: the piece that SentencePiece calls end of sentence."""
        if self.eod_id < 0:
            raise DataError(f"{name}: has no end-of-sentence piece to end documents with; train it with eos_id >= 0")
        self._mark_ids = self._byte_ids(SPACE_MARK)
        self._segments = self._cuts_safely()

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> "Tokenizer":
        """Read a SentencePiece .model; DataError if its fingerprint is not the one given."""
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: tokenizer cannot be read ({error.strerror})") from None
        return cls.parse(model, str(path), fingerprint)

    @classmethod
    def parse(cls, model: bytes, path: str, fingerprint: str | None) -> "Tokenizer":
        """As `load`, of what was read at `path`."""
        tokenizer = cls(model, path)
        if fingerprint is not None and tokenizer.fingerprint != fingerprint:
            raise DataError(
                f"{path}: is not the tokenizer that the dataset's manifest names (fingerprint "
                f"{tokenizer.fingerprint[:12]}, must be {fingerprint[:12]}); restore the file, or prepare again with "
                "prepare.overwrite=true"
            )
        return tokenizer

    @property
    def fingerprint(self) -> str:
        """Hash of pieces, scores and kinds; the file itself may differ where these do not."""
        digest = hashlib.sha256(struct.pack("<ii", self.vocab_size, self.eod_id))
        for index in range(self.vocab_size):
            piece = self._processor.id_to_piece(index).encode()
            kind = (
                self._processor.is_control(index),
                self._processor.is_unknown(index),
                self._processor.is_byte(index),
            )
            digest.update(struct.pack("<If???", len(piece), self._processor.get_score(index), *kind))
            digest.update(piece)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; no piece is added before or after it."""
        ids: list[int] = self.encode_batch([text], num_threads=1)[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[npt.NDArray[np.int32]]:
        """Ids of each text; the result does not depend on the number of threads."""
        parts: list[str] = []
        plans = [self._plan(text, parts) for text in texts]
        try:
            # Arrays, not lists: building lists would hold the other threads up.
            encoded = self._processor.encode(parts, return_type="numpy", num_threads=num_threads)
        except (RuntimeError, TypeError):  # which one depends on its version
            for text in texts:
                _refuse_surrogates(text)
            raise
        return [self._join(plan, encoded) for plan in plans]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-document pieces give nothing, bytes that are not UTF-8 give U+FFFD."""
        text: str = self._processor.decode([int(index) for index in ids])
        return text

    def _plan(self, text: str, parts: list[str]) -> list[int | None]:
        """Add the pieces of work of one text to `parts`; their numbers in order, None where U+2581 stands between."""
        plan: list[int | None] = []
        for number, stretch in enumerate(text.split(SPACE_MARK) if self._mark_ids else [text]):
            if number:
                plan.append(None)
            for segment in _cut(stretch) if self._segments else [stretch]:
                plan.append(len(parts))
                parts.append(segment)
        return plan

    def _join(self, plan: list[int | None], encoded: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
        if len(plan) == 1 and plan[0] is not None:
            return encoded[plan[0]]
        mark = np.array(self._mark_ids, dtype=np.int32)
        return np.concatenate([mark if number is None else encoded[number] for number in plan])

    def _byte_ids(self, text: str) -> list[int]:
        """Byte pieces of a text; empty if the model has none."""
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
        return ids if all(self._processor.is_byte(index) for index in ids) else []

    def _cuts_safely(self) -> bool:
        """Whether encoding the two sides of a SAFE_CUT gives the ids of the whole; models made elsewhere may not."""
        if any(SPACE_MARK in self._processor.id_to_piece(index).lstrip(SPACE_MARK) for index in range(self.vocab_size)):
            return False
        # Comes back only if nothing is normalised; its sides differ from the whole if a space is put before each text.
        probe = " \n  ﬁ\t e\u0301 "
        whole, left, right = self._processor.encode([probe, probe[:2], probe[2:]], out_type=int)
        return bool(whole == left + right and self._processor.decode(whole) == probe)


def _cut(text: str) -> Iterator[str]:
    """A long text in segments, so that one document can use several threads and little memory."""
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        found = SAFE_CUT.search(text, start + SEGMENT_CHARS)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text cannot be encoded: character {error.start} is a lone surrogate ({text[error.start]!r}), "
            "which UTF-8 does not have; remove it"
        ) from None


def train_tokenizer(documents: Callable[[], Iterable[str]], config: TokenizerConfig) -> bytes:
    """Train on whole documents; the bytes of a SentencePiece .model.

    Equal documents in equal order give equal bytes on any machine.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Whole documents: a file or single lines would hide every newline from the trainer.
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
            max_sentence_length=1 << 30,  # the default drops longer documents without a word
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
    """The share of the text whose characters become pieces of their own: all of it, unless those characters would fill
    more than half of the vocabulary; byte pieces spell the rarer ones."""
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
    share = (kept - 0.5) / counts.total()  # the trainer takes characters until it reaches this
    return max(share, 0.98)  # and accepts no less


def _training_fault(message: str, config: TokenizerConfig) -> DataError:
    prefix = f"tokenizer.vocab_size={config.vocab_size}: "
    if found := re.search(r"too high .*<= (\d+)", message):
        return DataError(
            f"{prefix}the text yields at most {found[1]} pieces; set tokenizer.vocab_size={found[1]} or less, "
            "or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"{prefix}too small for the characters and byte pieces of this text; set tokenizer.vocab_size to more than "
            f"{found[1]}"
        )
    return DataError(f"{prefix}SentencePiece cannot train a {config.kind} tokenizer on this text: {message}")
