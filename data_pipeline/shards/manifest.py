"""`manifest.json`: describes a prepared dataset and holds its checksums. It is written last."""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.config_text import written
from data_pipeline.errors import DataError, NewerFormat
from data_pipeline.storage.atomic_write import write_durably

if TYPE_CHECKING:
    from data_pipeline.tokenizers.base import Tokenizer  # with numpy, which reading a manifest does not need

MANIFEST_FILE = "manifest.json"
FORMAT = "pretrain packed dataset"
VERSION = 2
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a dataset."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardRecord(FileRecord):
    """One tar file of samples."""

    samples: int


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """One split: train or validation."""

    shards: tuple[ShardRecord, ...]
    index: FileRecord
    """An int64 .npy [members, 2]: the offset of each member's content within its shard, and its hash."""
    num_samples: int
    num_documents: int
    num_tokens: int
    """Tokens of all its documents, including one end-of-document token each."""
    num_text_bytes: int
    """UTF-8 bytes of all its documents."""
    num_tail_tokens: int
    """Tokens at the end that do not fill a sample and are dropped."""
    num_padding_tokens: int
    """End-of-document tokens that fill the rest of samples, not counting those of documents."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        return (self.index, *self.shards)


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """The tokenizer that made the tokens, stored beside the shards."""

    file: str
    kind: str
    vocab_size: int
    eod_id: int
    fingerprint: str
    """Hash of pieces and scores, which does not depend on where the tokenizer was trained."""
    settings_file: str
    """File with settings that the tokenizer file does not contain; empty if not needed."""

    @classmethod
    def of(cls, tokenizer: "Tokenizer", kind: str | None = None) -> "TokenizerRecord":
        """The record of a tokenizer; `kind`: the setting that it was trained with, by default its own kind."""
        return cls(
            file=tokenizer.file_name,
            kind=tokenizer.kind if kind is None else kind,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            fingerprint=tokenizer.fingerprint,
            settings_file=tokenizer.settings.file_name(tokenizer.file_name),
        )


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The contribution of one entry of the inputs."""

    name: str
    """The entry as typed. Bytes that are not UTF-8 are escaped."""
    documents: int
    """Documents kept."""
    text_bytes: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """The text that the dataset was made from."""

    name: str
    digest: str
    """Hash of the content hashes of all documents kept, in order, including those that the tokenizer cannot encode."""
    num_documents: int
    num_bytes: int
    document_bytes: int
    """Text files were split at line ends into documents of at most this many bytes."""
    num_cut_files: int
    """Text files that were longer and were split."""
    dropped: dict[str, int]
    """Documents left out, by reason."""
    changed: dict[str, int]
    """Documents changed, by rule of the cleaning steps."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The complete description of a prepared dataset."""

    corpus: CorpusRecord
    tokenizer: TokenizerRecord
    seq_length: int
    dtype: str
    samples_per_member: int
    """Samples in each member; the last member of a split may have fewer."""
    packing: str
    """`stream`: all documents are concatenated and cut into samples; neighbouring samples share a token. `best_fit`: a
    sample holds whole documents, or one chunk of a longer document. In a run of end-of-document tokens at a sample's
    end, the first belongs to a document and the rest are padding."""
    splits: dict[str, SplitRecord]
    validation_share: float
    """Share of the text bytes that is held out."""
    sources: tuple[SourceRecord, ...]
    """They are in the order of the inputs."""
    settings: dict[str, Any]
    """The configuration that produced it, by dotted key."""

    @property
    def digest(self) -> str:
        """Identifies the data: equal tokens in equal shards have the same digest, regardless of location and input
        paths."""
        content = dataclasses.asdict(self)
        del content["settings"], content["sources"]
        return _hash(content)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read and check `folder/manifest.json`. Raises a DataError that names the file."""
        path = folder / MANIFEST_FILE
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"data.path={folder}: not prepared (no {MANIFEST_FILE})",
                "run `pretrain prepare` with the same settings",
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, path: str) -> "Manifest":
        """Check the content of a manifest; `path` is used in messages."""
        try:
            stored = json.loads(content.decode())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not complete JSON ({error})", _HINT) from None
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise DataError(f"{path}: is not the manifest of a {FORMAT}", _HINT)
        version = stored.get("version")
        if isinstance(version, int) and version > VERSION:
            raise NewerFormat(
                f"{path}: was written by a newer version of pretrain (its format is {version}, this version reads "
                f"{VERSION})",
                "upgrade pretrain",
            )
        if version != VERSION:
            raise DataError(f"{path}: has format version {written(version)}, but this program reads {VERSION}", _HINT)
        body = stored.get("manifest")
        if stored.get("checksum") != _hash(body):
            raise DataError(f"{path}: was changed after it was written (its checksum does not match)", _HINT)
        return _build(cls, body, MANIFEST_FILE)

    def save(self, folder: Path) -> None:
        """Write `folder/manifest.json` atomically, also in case of a power failure."""
        body = dataclasses.asdict(self)
        stored = {"format": FORMAT, "version": VERSION, "checksum": _hash(body), "manifest": body}
        write_durably(folder / MANIFEST_FILE, (json.dumps(stored, indent=1, sort_keys=True) + "\n").encode())


_HINT = "prepare again with prepare.overwrite=true"


def _hash(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _build(cls: type[Record], value: object, where: str) -> Record:
    """Build a record from parsed JSON, checking that every field is present and has its declared type."""
    kinds = _kinds(cls)  # type: ignore[arg-type]
    if isinstance(value, dict) and dict(zip(value, map(type, value.values()), strict=True)) == kinds:
        # There may be thousands of records, and a frozen record's own __init__ takes several times as long.
        record = object.__new__(cls)
        record.__dict__.update(value)
        return record
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise DataError(f"{where}: must have the keys {sorted(kinds)}", _HINT)
    return cls(**{name: _convert(kind, value[name], f"{where}: {name}") for name, kind in kinds.items()})


_kinds = functools.cache(typing.get_type_hints)
_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", tuple: "a list", dict: "a mapping"}


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(inner[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any or (isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and type(value) is kind):
        return value
    raise DataError(f"{where} is {written(value)}, but must be {_WORDS.get(origin or kind, kind)}", _HINT)
