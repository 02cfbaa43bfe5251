"""All documents of the inputs, streamed one at a time, with counts of the dropped ones by reason.

A corpus can be split into tasks of similar size that are read separately. Together they give the same documents.
"""

import collections
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.compression import ByteReader
from data_pipeline.sources.files import InputFile, find_files
from data_pipeline.sources.readers import TextKey, Unreadable, fault, read_jsonl, read_text
from data_pipeline.storage.file_names import compression_of, format_of, printable
from data_pipeline.storage.output_paths import own_paths

logger = logging.getLogger(__name__)
MAX_LISTED_NAMES = 3
READING_RULES = 2
"""Increase this when the same files yield other text. `prepare` then checks the text of existing datasets again."""


@dataclass(frozen=True)
class Span:
    """A file, a byte range of JSON lines (those that begin in it), or a range of row groups (Parquet)."""

    file: InputFile
    start: int
    end: int | None
    """None: up to the end of the file."""
    num_bytes: int
    """Size on disk."""


Task = tuple[Span, ...]


class Corpus:
    """The inputs of a configuration, or one task of them. `documents` can be called repeatedly, with the same
    result."""

    def __init__(self, data: DataConfig, task: Task | None = None, *, section: str = "data") -> None:
        """`section` is where `inputs` and `text_key` are configured, for messages."""
        self._data = data
        self._text_key = TextKey(data.text_key, f"{section}.text_key")
        self.ignored: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        """Entry of the inputs -> ignored files in its folder, which are hidden or describe the data."""
        if task is None:
            found = find_files(
                data.inputs,
                data.include,
                data.cache,
                own_paths(data.path),
                key=f"{section}.inputs",
                on_ignored=lambda given, paths: self.ignored[given].extend(paths),
            )
            task = tuple(Span(file, 0, None, file.num_bytes) for file in found)
        self.spans = task
        self.files = [span.file for span in task]
        self.disk_bytes = sum(span.num_bytes for span in task)
        self.dropped: collections.Counter[str] = collections.Counter()
        """Dropped documents by reason, in the latest pass."""
        self.num_cut_files = 0
        """Text files that were cut into several documents, in the latest pass."""
        self.cuts_inside_lines: list[str] = []
        """Documents that end inside a line, in the latest pass."""
        self.disk_position = 0
        """Bytes read from disk in the latest pass."""

    @property
    def status_digest(self) -> str:
        """Hash of the files' names, sizes and times, and of how they are read. Equal digests mean equal text."""
        digest = hashlib.sha256(b"%d" % READING_RULES)
        for file in self.files:
            digest.update(f"{file.identity}\n".encode(errors="replace"))
        return digest.hexdigest()

    @property
    def content_digest(self) -> str:
        """Hash of the files' names and bytes, and of how they are read. Reads all files."""
        digest = hashlib.sha256(b"%d" % READING_RULES)
        for file in self.files:
            digest.update(f"{file.name}\0{_file_sha256(file)}\n".encode(errors="replace"))
        return digest.hexdigest()

    def documents(
        self, document_bytes: int, on_dropped: Callable[[str, str, str], None] = lambda reason, source, problem: None
    ) -> Iterator[Document]:
        """Yields every valid, non-empty document. Text files are cut into documents of at most `document_bytes`.

        `on_dropped` is called for every other document with reason, location and problem.
        """
        self.dropped.clear()
        self.cuts_inside_lines.clear()
        self.num_cut_files = self.disk_position = 0
        for span in self.spans:
            before, file = self.disk_position, span.file
            with closing(file.open()) as raw:
                position, items = self._read(raw, span, document_bytes)
                for number, item in enumerate(items):
                    self.disk_position = before + position()
                    if number == 1 and format_of(file.name) == "text":
                        self.num_cut_files += 1
                    if isinstance(item, Unreadable):
                        if self._data.encoding_errors == "fail":
                            raise fault(item)
                        self.dropped[item.reason] += 1
                        on_dropped(item.reason, item.source, item.problem)
                    elif not item.text:
                        self.dropped["empty"] += 1
                        on_dropped("empty", item.source, "")
                    else:
                        if item.ends_inside_line:
                            self.cuts_inside_lines.append(item.source)
                        yield item
            self.disk_position = before + span.num_bytes

    def tasks(self, task_bytes: int) -> list[Task]:
        """Split the corpus, in order, into tasks of about `task_bytes` bytes on disk. Each document is in one task.

        All files of a task come from one entry of the inputs. Files are split only where documents stay intact:
        uncompressed JSON lines between lines, Parquet between row groups.
        """
        tasks: list[Task] = []
        gathered: list[Span] = []
        num_bytes = 0
        for span in self.spans:
            if gathered and gathered[0].file.given != span.file.given:
                tasks.append(tuple(gathered))
                gathered, num_bytes = [], 0
            for part in _cut(span, task_bytes):
                gathered.append(part)
                num_bytes += part.num_bytes
                if num_bytes >= task_bytes:
                    tasks.append(tuple(gathered))
                    gathered, num_bytes = [], 0
        return [*tasks, tuple(gathered)] if gathered else tasks

    def _read(
        self, raw: BinaryIO, span: Span, document_bytes: int
    ) -> tuple[Callable[[], int], Iterator[Document | Unreadable]]:
        """A function that returns how many bytes of the span have been read so far, and the documents of the span."""
        key, file = self._text_key, span.file
        if _is_parquet(file):
            from data_pipeline.sources.parquet import ParquetReader  # import pyarrow only if it is needed

            table = ParquetReader(raw, file.name, key, range(span.start, span.end) if span.end else None)
            return lambda: int(span.num_bytes * table.share_read), table.documents()
        if format_of(file.name) == "json_lines":
            raw.seek(max(span.start - 1, 0))
            reader = ByteReader(raw, file.name)
            items = read_jsonl(reader, file.name, key, span.start, span.end)
            return lambda: reader.compressed_position() - span.start, items
        reader = ByteReader(raw, file.name)
        return reader.compressed_position, read_text(reader, file.name, document_bytes)


def log_ignored_files(corpus: Corpus, key: str) -> None:
    """Log how many files in the inputs' folders are ignored."""
    for given, names in corpus.ignored.items():
        if names:
            logger.info(
                "%s: %s: ignoring %d files that are hidden, or READMEs beside data (%s%s); to read one, name it",
                key,
                given,
                len(names),
                ", ".join(map(printable, names[:MAX_LISTED_NAMES])),
                ", ..." if len(names) > MAX_LISTED_NAMES else "",
            )


def _file_sha256(file: InputFile) -> str:
    try:
        with closing(file.open()) as raw:
            return hashlib.file_digest(raw, "sha256").hexdigest()  # type: ignore[arg-type]  # BinaryIO says too little
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read ({error.strerror})") from None


def _is_parquet(file: InputFile) -> bool:
    if format_of(file.name) != "parquet":
        return False
    if compression_of(file.name) is not None:
        raise DataError(
            f"{file.name}: a Parquet file must not be compressed as a whole, because it is read from any offset",
            "unpack the file",
        )
    return True


def _cut(span: Span, task_bytes: int) -> Iterator[Span]:
    if span.num_bytes <= task_bytes:
        yield span
    elif _is_parquet(span.file):
        yield from _row_groups(span, task_bytes)
    elif format_of(span.file.name) == "json_lines" and compression_of(span.file.name) is None:
        for start in range(0, span.num_bytes, task_bytes):
            end = min(start + task_bytes, span.num_bytes)
            yield Span(span.file, start, end, end - start)
    else:
        yield span


def _row_groups(span: Span, task_bytes: int) -> Iterator[Span]:
    from data_pipeline.sources.parquet import row_group_bytes

    with closing(span.file.open()) as raw:
        sizes: Sequence[int] = row_group_bytes(raw, span.file.name)
    first = num_bytes = 0
    for number, size in enumerate(sizes):
        num_bytes += size
        if num_bytes >= task_bytes or number == len(sizes) - 1:
            yield Span(span.file, first, number + 1, num_bytes)
            first, num_bytes = number + 1, 0
