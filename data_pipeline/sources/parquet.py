"""Documents of a Parquet file: one per row of a text column, read a few rows at a time."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from data_pipeline.document import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.compression import REPLACE
from data_pipeline.sources.readers import TextKey, Unreadable

ROWS_AT_ONCE = 64
"""Few, because web pages may be megabytes long."""


class ParquetReader:
    """Reads the column `text_key` of an open file. `name` is used in messages."""

    def __init__(self, raw: BinaryIO, name: str, text_key: TextKey, row_groups: range | None = None) -> None:
        self._name, self._text_key = name, text_key
        self._file = _open(raw, name)
        metadata = self._file.metadata
        self._row_groups = range(metadata.num_row_groups) if row_groups is None else row_groups
        rows = [metadata.row_group(number).num_rows for number in range(self._row_groups.stop)]
        self._rows_read = self._first_row = sum(rows[: self._row_groups.start])
        self._num_rows = sum(rows) - self._first_row
        names = self._file.schema_arrow.names
        if text_key.name not in names:
            raise DataError(
                f"{name}: has no column {text_key.name!r} (it has {sorted(names)[:8]})", f"set {text_key.setting}"
            )
        if (count := names.count(text_key.name)) > 1:
            raise DataError(
                f"{name}: has {count} columns named {text_key.name!r}", "rename all but one", f"set {text_key.setting}"
            )
        kind = self._file.schema_arrow.field(text_key.name).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if not any(check(kind) for check in _TEXT_KINDS):
            raise DataError(
                f"{name}: column {text_key.name!r} is {kind}, but must be string", f"set {text_key.setting}"
            )

    def documents(self) -> Iterator[Document | Unreadable]:
        """The text of each row, in order."""
        batches = self._file.iter_batches(
            ROWS_AT_ONCE, list(self._row_groups), [self._text_key.name], use_threads=False
        )
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (pyarrow.ArrowException, OSError) as error:
                raise _damaged(self._name, error) from None
            # By name, because for a column called `meta.text` pyarrow also reads the field `text` of a struct `meta`.
            for value in batch.column(self._text_key.name):
                self._rows_read += 1
                yield self._document(value, f"{self._name}:{self._rows_read}")

    @property
    def share_read(self) -> float:
        """Share of the rows read, for progress."""
        return (self._rows_read - self._first_row) / self._num_rows if self._num_rows else 1.0

    def _document(self, value: pyarrow.Scalar, where: str) -> Document | Unreadable:
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            return Unreadable("not_utf8", where, f"not UTF-8 at byte {error.start} of the text ({error.reason})")
        if text is None:
            return Unreadable("no_text", where, f"{self._text_key.name!r} is null")
        return Document(text, where, len(text.encode()))


def row_group_bytes(raw: BinaryIO, name: str) -> list[int]:
    """The compressed size of each row group, all columns together."""
    metadata = _open(raw, name).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [sum(group.column(column).total_compressed_size for column in range(group.num_columns)) for group in groups]


def _open(raw: BinaryIO, name: str) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(raw, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: BaseException) -> DataError:
    reason = str(error).strip().splitlines()[0]
    return DataError(f"{name}: Parquet file is damaged ({reason})", *REPLACE)


_TEXT_KINDS = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
