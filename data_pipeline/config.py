"""What the data pipeline can be told: plain frozen records, nothing heavy imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MixturePhase:
    """Other weights from some point of training on, as for annealing."""

    after_tokens: int
    """Training tokens before it."""
    weights: dict[str, float]
    """As in `mixture`; a dataset that is not named is left out."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where text comes from and how it becomes a packed dataset."""

    name: str
    """Name of the corpus, for the manifest, logs and reports."""
    path: str
    """Folder of the prepared dataset: `prepare` writes it, `train` reads it."""
    inputs: tuple[str, ...]
    """Files, folders, or `stdlib:` for the standard library of the running Python."""
    include: tuple[str, ...]
    """File name patterns taken from folders among the inputs; files named directly are always taken."""
    text_key: str
    """Key of the text in each line of a .jsonl file; column of the text in a .parquet file."""
    encoding_errors: Literal["fail", "skip"]
    """A document that is not UTF-8 (or a broken JSON line): stop and name it, or leave it out and count it."""
    max_document_bytes: int
    """Longer text files are cut at line ends into several documents, so that memory stays bounded."""
    validation_fraction: float
    """Share of documents held out, chosen by a hash of their content."""
    validation_min_bytes: int
    """Hold out more documents, in order of their hash, until this many bytes (or half the corpus) are reached."""
    samples_per_member: int
    """Packed samples stored in one tar member."""
    shard_bytes: int
    """Size at which a new shard is begun."""
    packing: Literal["stream", "best_fit"]
    """How documents become samples: cut out of one long row of all; or put side by side so that only those longer than
    a sample are cut, the rest of a sample being filled with tokens that count in no loss (but as trained tokens)."""
    mixture: dict[str, float] | None
    """Train on several prepared datasets, those that lie beside data.path under these names, in shares of the tokens
    by these weights, as in {web: 0.7, code: 0.3}; null: on data.path alone."""
    mixture_max_epochs: dict[str, float] | None
    """Passes over a dataset of the mixture after which the others fill its place, as in {code: 4}; one that is not
    named has no end."""
    mixture_later: tuple[MixturePhase, ...]
    """Weights that replace the first ones later, in order, as in [{after_tokens: 9e9, weights: {books: 1}}]."""
    document_mask: bool
    """A token attends to its own document only, and positions begin at 0 in each; false: to all earlier tokens of its
    sample. Either way the first token of a document is predicted, at the end of the one before it, and counts."""


def dataset_folders(data: DataConfig) -> dict[str, Path]:
    """The prepared datasets that a run reads, by name: all of a mixture, else the one."""
    path = Path(data.path)
    return {data.name: path} if data.mixture is None else {name: path.parent / name for name in data.mixture}


TRAINING_KEYS = ("mixture", "mixture_max_epochs", "mixture_later", "document_mask")
"""What says nothing of a prepared dataset."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A SentencePiece tokenizer: trained from the corpus, or an existing one."""

    kind: Literal["bpe", "unigram"]
    """The SentencePiece algorithm."""
    vocab_size: int
    """Number of pieces, byte pieces and control pieces included."""
    sample_bytes: int
    """At most this many bytes of whole documents, chosen by seeded hash, train the tokenizer."""
    path: str | None
    """An existing SentencePiece .model to use instead of training one."""
    seed: int
    """Chooses the documents of the sample."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How `prepare` runs; none of this changes what it writes."""

    num_workers: int | None
    """Threads that encode; null takes every core."""
    overwrite: bool
    """Replace a dataset that was prepared from other text or settings."""
