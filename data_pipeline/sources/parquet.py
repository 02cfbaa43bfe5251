"""Documents of a Parquet file: one in each row of a text column, read a few rows at a time."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from data_pipeline.document import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.readers import Unreadable

ROWS_AT_ONCE = 64
"""Few, as web pages may be megabytes long."""


class ParquetReader:
    """The column `text_key` of an open file; `name` is for messages."""

    def __init__(self, raw: BinaryIO, name: str, num_bytes: int, text_key: str) -> None:
        self._name, self._num_bytes, self._text_key = name, num_bytes, text_key
        self._rows_read = 0
        try:
            self._file = pyarrow.parquet.ParquetFile(raw, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        names = self._file.schema_arrow.names
        if text_key not in names:
            raise DataError(f"{name}: has no column {text_key!r} (it has {sorted(names)[:8]}); set data.text_key")
        kind = self._file.schema_arrow.field(text_key).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if not any(check(kind) for check in _TEXT_KINDS):
            raise DataError(f"{name}: column {text_key!r} is {kind}, must be string; set data.text_key")

    def documents(self) -> Iterator[Document | Unreadable]:
        """The text of each row, in order."""
        batches = self._file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[self._text_key], use_threads=False)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (pyarrow.ArrowException, OSError) as error:
                raise self._damaged(error) from None
            for value in batch.column(0):
                self._rows_read += 1
                yield self._document(value, f"{self._name}:{self._rows_read}")

    def compressed_position(self) -> int:
        """Bytes taken from the disk so far, for progress: by rows, as columns lie apart."""
        rows = self._file.metadata.num_rows
        return self._num_bytes * self._rows_read // rows if rows else self._num_bytes

    def _document(self, value: pyarrow.Scalar, where: str) -> Document | Unreadable:
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            return Unreadable("not_utf8", f"{where}: not UTF-8 at byte {error.start} of the text ({error.reason})")
        if text is None:
            return Unreadable("no_text", f"{where}: {self._text_key!r} is null")
        return Document(text, where, len(text.encode()))

    def _damaged(self, error: BaseException) -> DataError:
        reason = str(error).strip().splitlines()[0]
        return DataError(f"{self._name}: Parquet file is damaged ({reason}); fetch it again or leave it out")


_TEXT_KINDS = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
