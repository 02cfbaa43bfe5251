"""Small real tokenizers of other kinds, trained on the spot."""

import base64
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.support.corpus import make_texts

END = "<|endoftext|>"


@functools.cache
def byte_level_bpe(vocab_size: int = 400, special: Sequence[str] = (END,), seed: int = 0) -> str:
    """The text of a tokenizer.json."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*make_texts(20, seed=seed), "def f(x):\n    return 12\n" * 20], trainer)
    return str(tokenizer.to_str())


def changed(record: str, **changes: Any) -> str:
    """A tokenizer.json with other top-level values."""
    return json.dumps(json.loads(record) | changes)


def tiktoken_ranks(tokenizer_json: str) -> dict[bytes, int]:
    """The tokens of a byte-level BPE as bytes, in merge order."""
    record = json.loads(tokenizer_json)
    # Byte-level tokenizers write each byte as a printable character; printable bytes stay themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    special = {token["content"] for token in record["added_tokens"]}
    order = sorted((index, token) for token, index in record["model"]["vocab"].items() if token not in special)
    return {bytes(byte_of[character] for character in token): rank for rank, (_, token) in enumerate(order)}


def tiktoken_bytes(ranks: dict[bytes, int]) -> bytes:
    """The content of a .tiktoken file."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def write_tiktoken(path: Path, pattern: str = "gpt2", special: dict[str, int] | None = None, **settings: Any) -> Path:
    """A .tiktoken file with its settings beside it."""
    ranks = tiktoken_ranks(byte_level_bpe())
    path.write_bytes(tiktoken_bytes(ranks))
    named = {END: len(ranks)} if special is None else special
    settings = {"pattern": pattern, "special_tokens": named, **settings}
    path.with_name(f"{path.stem}.settings.json").write_text(json.dumps(settings))
    return path
