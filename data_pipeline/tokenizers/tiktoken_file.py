"""Tokenizers from tiktoken files, which list base64 tokens with their ranks."""

import base64
import binascii
import hashlib
import itertools
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.base import (
    Ids,
    TokenizerSettings,
    as_unencodable,
    find_eod,
    in_threads,
    missing_package,
    reject_surrogates,
    settings_path,
)
from data_pipeline.tokenizers.encodings import ENCODINGS, PATTERNS

MAX_BLANKS = 20_000
"""Longer runs of blanks overflow the stack of tiktoken's regular expressions, so they are split."""
LONG_BLANKS = re.compile(rf"(?<!\s)\s{{{MAX_BLANKS},}}")


class TiktokenTokenizer:
    """The ranks of a .tiktoken file. Pattern and special tokens come from its settings, or from the published
    encoding that the file belongs to."""

    kind: ClassVar = "tiktoken"
    file_name: ClassVar = "tokenizer.tiktoken"

    def __init__(self, content: bytes, name: str = "tokenizer", settings: TokenizerSettings | None = None) -> None:
        try:
            import tiktoken
        except ImportError:
            raise missing_package(name, "tiktoken") from None
        ranks = _read_ranks(content, name)
        pattern, special = _missing_parts(content, name, settings or TokenizerSettings())
        taken = set(ranks.values())
        for token, index in special.items():
            if index in taken:
                raise DataError(f"{name}: the special token {token!r} has the ID {index}, which another token also has")
            taken.add(index)
        remedy = (
            f"give its id as special_tokens in {settings_path(Path(name))}, as in "
            f'{{"<|endoftext|>": {max(taken) + 1}}}, and its name as tokenizer.eod if it is another'
        )
        eod = find_eod(name, special, settings.eod if settings else None, remedy)
        self.settings = TokenizerSettings(eod=eod, pattern=pattern, special_tokens=special)
        self.vocab_size: int = max(taken) + 1
        self.eod_id: int = special[eod]
        self._tokens = {index: token for token, index in ranks.items()}
        try:
            # Without special tokens, it encodes them as ordinary text.
            self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        except ValueError as error:
            raise DataError(f"{name}: its pattern {pattern!r} is not a regular expression ({error})") from None

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the IDs: pattern, tokens, ranks, end-of-document token."""
        pattern = str(self.settings.pattern).encode()
        digest = hashlib.sha256(struct.pack("<iii", self.vocab_size, self.eod_id, len(pattern)) + pattern)
        for index, token in sorted(self._tokens.items()):
            digest.update(struct.pack("<ii", index, len(token)) + token)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """The IDs of a text, with nothing added before or after it."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[Ids]:
        """The IDs of each text. The result does not depend on the number of threads."""
        return in_threads(self._encode, texts, num_threads)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode IDs. Special tokens are left out, and invalid UTF-8 becomes U+FFFD."""
        return b"".join(self._tokens.get(int(index), b"") for index in ids).decode(errors="replace")

    def _encode(self, text: str) -> Ids:
        reject_surrogates(text)
        runs = (range(run.start() + MAX_BLANKS, run.end(), MAX_BLANKS) for run in LONG_BLANKS.finditer(text))
        cuts = [0, *itertools.chain.from_iterable(runs), len(text)]
        parts = [self._encode_part(text[start:end]) for start, end in itertools.pairwise(cuts)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode_part(self, text: str) -> Ids:
        with as_unencodable("tiktoken", text):
            return self._encoding.encode_to_numpy(text).astype(np.int32)


def _missing_parts(content: bytes, name: str, settings: TokenizerSettings) -> tuple[str, dict[str, int]]:
    """The pattern and the special tokens."""
    digest = hashlib.sha256(content).hexdigest()
    known = next((encoding for encoding in ENCODINGS.values() if encoding.sha256 == digest), None)
    special = dict(settings.special_tokens) or (known.special_tokens if known else {})
    if settings.pattern is not None:
        return PATTERNS.get(settings.pattern, settings.pattern), special
    if known is not None:
        return known.pattern, special
    stem = Path(name).stem
    unlike = f" (it has the name of {stem}, but its content is not that one's)" if stem in ENCODINGS else ""
    raise DataError(
        f"{name}: does not belong to a published encoding of tiktoken{unlike}, so its pattern is unknown",
        f'put a file {settings_path(Path(name)).name} beside it, as in {{"pattern": "cl100k_base", "special_tokens": '
        '{"<|endoftext|>": 100257}}',
        f"pattern must be one of {', '.join(PATTERNS)}, or a regular expression",
    )


def _read_ranks(content: bytes, name: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            index = int(rank)
        except (ValueError, binascii.Error):
            text = line[:40].decode(errors="replace")
            shown = repr(text) if text.isprintable() and text.isascii() else "it is not even text"
            raise DataError(f"{name}, line {number}: is not a base64 token and its rank: {shown}") from None
        if not token or index < 0 or token in ranks:
            raise DataError(
                f"{name}, line {number}: the token {token!r} is empty, is listed twice, or has a rank below 0"
            )
        ranks[token] = index
    if len(set(ranks.values())) != len(ranks):
        raise DataError(f"{name}: two tokens have the same rank")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(f"{name}: has no token for byte {missing[0]}; it is truncated or not a byte-level vocabulary")
    return ranks
