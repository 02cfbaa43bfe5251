"""A run's tokenizer as tokenizer.json and tokenizer_config.json, which give the same token IDs in transformers.

What transformers itself makes of a SentencePiece model adds a space, a beginning-of-text token, or turns the text
`</s>` into the end of a document. So the file is made here, from the pieces and scores of the model:

- Pieces are written with spaces; U+2581, SentencePiece's mark for a space, is then an ordinary character.
- BPE: each pair of pieces that make a piece is a merge, in the order of the scores. Text is first split where a space
  follows another character: no piece crosses that, so the IDs stay the same and long texts stay fast.
- Unigram: SentencePiece adds scores in float32 and tokenizers in float64, so orderings of equal score may differ.
  The text always comes back; `different_ids` measures how often the IDs differ.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenizers.loading import TokenizerFiles
from data_pipeline.tokenizers.sentencepiece_model import Piece, SentencePieceTokenizer
from pretrain.config.errors import RunError

BETWEEN_WORDS = " *[^ ]+| +"
_NEVER_OF_TEXT = -1e6
"""The unigram score of pieces that text never becomes: without it the text `<0x41>` would be the byte piece."""


def write_tokenizer(files: TokenizerFiles, folder: Path, *, seq_length: int) -> str:
    """Write the tokenizer for transformers into `folder`; returns how its IDs compare with ours, for a report.

    Raises RunError if no tokenizer.json can have the same IDs.
    """
    tokenizer = files.load()
    if isinstance(tokenizer, SentencePieceTokenizer):
        described, end, note = _of_sentencepiece(tokenizer, files.place)
        write_durably(folder / tokenizer.file_name, files.content)
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        described, end = _without_additions(files.content), str(tokenizer.settings.eod)
        note = "the run's own tokenizer.json, without the tokens that it adds to a text"
    else:
        raise RunError(
            f"{files.place}: a tiktoken file has no tokenizer.json",
            "prepare the data with the tokenizer.json of the same tokenizer",
        )
    _write_json(folder / "tokenizer.json", described)
    _write_json(folder / "tokenizer_config.json", _settings(end, seq_length))
    return note


def different_ids(tokenizer: Tokenizer, folder: Path, texts: Sequence[str]) -> tuple[int, int]:
    """How many of these texts have other IDs in the exported tokenizer, and in how many the text does not come back.

    Needs the `tokenizers` package.
    """
    from tokenizers import Tokenizer as Exported

    exported = Exported.from_file(str(folder / "tokenizer.json"))
    exported.encode_special_tokens = True
    others = lost = 0
    for text in texts:
        ids = exported.encode(text, add_special_tokens=False).ids
        others += ids != tokenizer.encode(text)
        lost += exported.decode(ids, skip_special_tokens=False) != text
    return others, lost


def _of_sentencepiece(tokenizer: SentencePieceTokenizer, place: str) -> tuple[dict[str, Any], str, str]:
    if not tokenizer.is_made_here:
        raise RunError(
            f"{place}: this SentencePiece model was not made by `pretrain prepare`, and changes text",
            "export with tokenizer=false and copy the tokenizer.json of its source",
        )
    pieces = tokenizer.pieces
    end = pieces[tokenizer.eod_id].text
    model, splitter, note = (
        (_bpe(pieces), _splitter(), "the same IDs for every text")
        if tokenizer.is_bpe
        else (_unigram(pieces), None, "some texts have other IDs of equal score; every text comes back")
    )
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _special(index, piece.text) for index, piece in enumerate(pieces) if piece.is_control or piece.is_unknown
        ],
        "normalizer": None,
        "pre_tokenizer": splitter,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    }
    return described, end, note


def _splitter() -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": BETWEEN_WORDS}, "behavior": "Isolated", "invert": False}


def _bpe(pieces: Sequence[Piece]) -> dict[str, Any]:
    scores = {piece.text: piece.score for piece in pieces if piece.is_of_text}
    merges = [
        (-score, cut, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(piece.text for piece in pieces if piece.is_unknown),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece.text: index for index, piece in enumerate(pieces)},
        "merges": [[first, second] for _, _, first, second in sorted(merges)],
    }


def _unigram(pieces: Sequence[Piece]) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": next(index for index, piece in enumerate(pieces) if piece.is_unknown),
        "vocab": [[piece.text, piece.score if piece.is_of_text else _NEVER_OF_TEXT] for piece in pieces],
        "byte_fallback": True,
    }


def _special(index: int, text: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": text, **flags}


def _without_additions(content: bytes) -> dict[str, Any]:
    """A tokenizer.json that adds nothing to a text, and cuts and fills nothing: as it is used in training."""
    described: dict[str, Any] = json.loads(content)
    return described | {"post_processor": None, "truncation": None, "padding": None}


def _settings(end: str, seq_length: int) -> Mapping[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Without it the text of a special token becomes that token: a document could end itself.
        "split_special_tokens": True,
        "bos_token": None,
        "add_bos_token": False,
        "eos_token": end,
        "pad_token": end,
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_length,
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_durably(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
