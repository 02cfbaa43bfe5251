"""Reads settings from a SentencePiece model file that affect IDs or text and that the package does not expose.

The file is a protobuf message: numbered fields whose values are numbers or bytes, which may be nested messages.
"""

from collections.abc import Iterator

Value = int | bytes

UNIGRAM, BPE = 1, 2
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_MODEL_TYPE, _WHITESPACE_AS_SUFFIX, _UNKNOWN_SURFACE = 3, 24, 44
_CHARACTER_MAP, _DUMMY_PREFIX, _REMOVE_WHITESPACE, _ESCAPE_WHITESPACE = 2, 3, 4, 5
_KIND = 3
_KINDS_NOT_REPORTED = (4, 5)
"""User-defined and unused pieces."""

_DEFAULTS: dict[tuple[int, int], Value] = {
    (_TRAINER, _MODEL_TYPE): UNIGRAM,
    (_TRAINER, _WHITESPACE_AS_SUFFIX): 0,
    (_TRAINER, _UNKNOWN_SURFACE): " \u2047 ".encode(),
    **{(both, _CHARACTER_MAP): b"" for both in (_NORMALIZER, _DENORMALIZER)},
    **{
        (both, field): 1
        for both in (_NORMALIZER, _DENORMALIZER)
        for field in (_DUMMY_PREFIX, _REMOVE_WHITESPACE, _ESCAPE_WHITESPACE)
    },
}
"""(message, field) -> the default value that holds if the model omits the field."""
_MADE_HERE = _DEFAULTS | {
    (_NORMALIZER, _DUMMY_PREFIX): 0,
    (_NORMALIZER, _REMOVE_WHITESPACE): 0,
}


def differences_from_ours(model: bytes, model_type: int) -> list[tuple[int, int, Value]]:
    """Compare a model with those of this type that `train_tokenizer` makes.

    Returns the settings that differ, as (message, field, value), and the pieces of a kind that such models do not
    have, as (message, ID, kind).
    """
    settings, kinds = dict(_DEFAULTS), list[Value]()
    for message, content in _fields(model):
        assert isinstance(content, bytes)
        if message == _PIECES:
            kinds.append(dict(_fields(content)).get(_KIND, 0))
        else:
            settings |= {(message, field): value for field, value in _fields(content) if (message, field) in settings}
    ours = _MADE_HERE | {(_TRAINER, _MODEL_TYPE): model_type}
    return [
        *((message, field, value) for (message, field), value in settings.items() if value != ours[message, field]),
        *((_PIECES, index, kind) for index, kind in enumerate(kinds) if kind in _KINDS_NOT_REPORTED),
    ]


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of a message that the package was able to parse."""
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _number(message, at)
            yield tag >> 3, value
        else:
            size, at = _number(message, at) if wire_type == 2 else ({1: 8, 5: 4}[wire_type], at)
            yield tag >> 3, message[at : at + size]
            at += size


def _number(message: bytes, at: int) -> tuple[int, int]:
    """A varint (seven bits per byte, lowest first), and the offset after it."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
