"""Tokenizers from Hugging Face's tokenizer.json."""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from data_pipeline.errors import DataError, Unencodable
from data_pipeline.tokenizers.base import (
    EOD_NAMES,
    Ids,
    TokenizerSettings,
    as_unencodable,
    find_eod,
    in_threads,
    missing_package,
    reject_surrogates,
)


class HuggingFaceTokenizer:
    """A tokenizer.json. Only its normalizer, pre-tokenizer, model and added tokens are used."""

    kind: ClassVar = "huggingface"
    file_name: ClassVar = "tokenizer.json"

    def __init__(self, content: bytes, name: str = "tokenizer", settings: TokenizerSettings | None = None) -> None:
        # The package reads this at each call. Its own threads would use every core regardless of num_threads.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            import tokenizers
        except ImportError:
            raise missing_package(name, "tokenizers") from None
        self._record = _parse(content, name)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self._record))
        except Exception as error:
            raise DataError(f"{name}: is not a tokenizer.json that the tokenizers package can read ({error})") from None
        self._tokenizer.encode_special_tokens = True  # special tokens written in the text are encoded as text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        special = {token["content"]: int(token["id"]) for token in self._record["added_tokens"]}
        wanted = (settings or TokenizerSettings()).eod
        # In some files the token is only in the vocabulary.
        plain = {token: index for token, index in vocabulary.items() if token in EOD_NAMES or wanted in (token, index)}
        eod = find_eod(name, special | plain, wanted, "name one as tokenizer.eod")
        self.settings = TokenizerSettings(eod=eod)
        self.eod_id: int = vocabulary[eod]
        unknown = _unknown_id(self._record["model"], vocabulary)
        self._reserved = {self.eod_id} | {
            int(token["id"])
            for token in self._record["added_tokens"]
            if token.get("special") and token["id"] != unknown
        }
        self._reserved_ids = np.array(sorted(self._reserved), dtype=np.int32)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the IDs. It is the same for every version of the file format."""
        model = {key: value for key, value in self._record["model"].items() if value is not None and value is not False}
        if "merges" in model:  # older files write a merge as one string with a space
            model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        decisive = {
            "model": model,
            "normalizer": self._record.get("normalizer"),
            "pre_tokenizer": self._record.get("pre_tokenizer"),
            "added_tokens": sorted(self._record["added_tokens"], key=lambda token: int(token["id"])),
            "vocab_size": self.vocab_size,
            "eod_id": self.eod_id,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The IDs of a text, with nothing added before or after it."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[Ids]:
        """The IDs of each text. The result does not depend on the number of threads."""
        return in_threads(self._encode, texts, num_threads)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode IDs. Special tokens are left out, and invalid UTF-8 becomes U+FFFD."""
        kept = [int(index) for index in ids if int(index) not in self._reserved]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    def _encode(self, text: str) -> Ids:
        reject_surrogates(text)
        with as_unencodable("tokenizers", text):
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int32)
        return self._encode_in_pieces(text) if np.isin(ids, self._reserved_ids).any() else ids

    def _encode_in_pieces(self, text: str) -> Ids:
        """Encode a text of which a part would become a special token, by splitting that part in two. (A unigram
        model may contain `</s>` as a piece.)"""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        cuts = [0]
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index in self._reserved:
                if end - start < 2:
                    raise Unencodable(
                        f"text cannot be encoded: this tokenizer turns {text[start:end]!r} into its special token "
                        f"{index}"
                    )
                cuts.append(start + 1)
        cuts.append(len(text))
        return np.concatenate([self._encode(text[start:end]) for start, end in itertools.pairwise(cuts)])


def _parse(content: bytes, name: str) -> dict[str, Any]:
    """The parsed file, without dropout, truncation, padding and post-processing."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is not complete JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict):
        raise DataError(f'{name}: is JSON, but not a Hugging Face tokenizer.json (it has no "model")')
    record["model"]["dropout"] = None
    record |= {"truncation": None, "padding": None, "post_processor": None}
    record["added_tokens"] = record.get("added_tokens") or []
    return record


def _unknown_id(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    """The ID of unknown text. It is a special token that encoding a text may yield."""
    index = model.get("unk_id")
    return int(index) if index is not None else vocabulary.get(str(model.get("unk_token")))
