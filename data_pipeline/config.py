"""What the data pipeline can be told: plain frozen records, nothing heavy imported."""

from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.errors import DataError

LEAST_SHARE = 2.0**-20
"""Of a dataset in a mixture; shares are kept to whole multiples of it."""


@dataclass(frozen=True, kw_only=True)
class NearDedupConfig:
    """How alike two documents must be for the later one to be left out."""

    shingle_words: int
    """Consecutive words compared as one."""
    bands: int
    """Parts of a signature; documents that agree in all rows of a band are compared."""
    rows: int
    """Numbers in a band: more of them find less, with fewer comparisons in vain."""
    similarity: float
    """Estimated Jaccard similarity from which on a document is a duplicate of another."""
    seed: int
    """Chooses the permutations."""

    def __post_init__(self) -> None:
        for key in ("shingle_words", "bands", "rows"):
            if getattr(self, key) < 1:
                raise DataError(f"data.near_dedup.{key}={getattr(self, key)}: must be at least 1")
        if not 0 < self.similarity <= 1:
            raise DataError(
                f"data.near_dedup.similarity={self.similarity}: must be above 0 and at most 1, as a share of shingles"
            )

    @property
    def permutations(self) -> int:
        return self.bands * self.rows


@dataclass(frozen=True, kw_only=True)
class MixturePhase:
    """Other weights from some point of training on, as for annealing."""

    after_tokens: int
    """Training tokens before it."""
    weights: dict[str, float]
    """As in `mixture`; a dataset that is not named is left out."""


@dataclass(frozen=True, kw_only=True)
class DecontaminateConfig:
    """Documents that share a run of words with these texts, before data.steps or after them, are left out (Brown et al.
    2020, appendix C)."""

    inputs: tuple[str, ...]
    """Files and folders, as in data.inputs; none: nothing is left out."""
    text_key: str
    """Key or column of the text in them."""
    ngram: int
    """Length of the run, in words."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How files that lie elsewhere are read, and where shards of them are kept on this node."""

    dir: str | None
    """A folder on a disk of the node; null: with the user's other caches (XDG_CACHE_HOME, ~/.cache)."""
    max_bytes: int
    """Bound of the shards there, for all runs that share the folder; the least recently used go first."""
    retries: int
    """How often a file is tried for again: after no answer in time, broken connections, a server's own faults, short
    answers, wrong checksums."""
    retry_seconds: float
    """Before the first of them; twice as long before each further one, in the mean."""
    timeout_seconds: float
    """To wait for a server's, or a command's, next bytes, a day at most; ten times as long for a list of files."""
    allow_pipe: bool
    """Take `pipe:COMMAND` for data.path: the command, run without a shell, prints {file}."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where text comes from and how it becomes a packed dataset."""

    name: str
    """Name of the corpus, for the manifest, logs and reports."""
    path: str
    """Folder of the prepared dataset: `prepare` writes it, `train` reads it, also at a URL such as s3://bucket/set."""
    inputs: tuple[str, ...]
    """Files, folders, their URLs, or `stdlib:` for the standard library of the running Python. Names tell how files are
    read: .jsonl, .ndjson and .json as JSON lines, .parquet by rows, any other as text; .gz and .zst are unpacked."""
    include: tuple[str, ...]
    """File name patterns taken from folders among the inputs, capital letters or not. Names that begin with a dot, and
    READMEs beside JSON lines or Parquet, are passed over there; files named directly are always taken."""
    text_key: str
    """Key of the text in each JSON line; column of the text in a .parquet file."""
    encoding_errors: Literal["fail", "skip"]
    """A document that is not UTF-8 or that tokenizer.path cannot encode, or a JSON line that is broken, has no text, or
    does not end: stop and name it, or leave it out and count it."""
    max_document_bytes: int
    """Longer text files are cut at line ends into several documents, so that memory stays bounded."""
    steps: tuple[dict[str, Any], ...]
    """Cleaning of each document, in this order, as in [{step: gopher_quality}, {step: pii, email: mask}]; README.md
    lists the steps and their settings."""
    dedup: Literal["none", "exact", "near"]
    """Of documents that are equal, or (near) alike, in all inputs together, keep the first."""
    near_dedup: NearDedupConfig
    """What near means; only used with dedup=near."""
    decontaminate: DecontaminateConfig
    """Texts to keep out of the training data, such as benchmarks."""
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
    by these weights, as in {web: 0.7, code: 0.3}, each 0 or a millionth of all at least; null: on data.path alone."""
    mixture_max_epochs: dict[str, float] | None
    """Passes over a dataset of the mixture after which the others fill its place, as in {code: 4}; one that is not
    named has no end."""
    mixture_later: tuple[MixturePhase, ...]
    """Weights that replace the first ones later, in order, as in [{after_tokens: 9e9, weights: {books: 1}}]."""
    document_mask: bool
    """A token attends to its own document only, and positions begin at 0 in each; false: to all earlier tokens of its
    sample. Either way the first token of a document is predicted, at the end of the one before it, and counts."""
    on_bad_shard: Literal["stop", "skip"]
    """A shard for training that stays missing, unreadable or damaged: stop and name it, or name it, leave its samples
    out (the others keep their places in the order) and count them."""
    cache: CacheConfig
    """Used where data.path or data.inputs are URLs."""


KEYS_OF_READING = ("mixture", "mixture_max_epochs", "mixture_later", "document_mask", "on_bad_shard", "cache")
"""What says nothing of a prepared dataset."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A SentencePiece tokenizer trained from the corpus, or an existing one of any kind."""

    kind: Literal["bpe", "unigram"]
    """The SentencePiece algorithm."""
    vocab_size: int
    """Number of pieces, byte pieces and control pieces included."""
    sample_bytes: int
    """At most this many bytes of whole documents, chosen by seeded hash, train the tokenizer."""
    path: str | None
    """An existing tokenizer to use instead of training one: a SentencePiece .model, a Hugging Face tokenizer.json, or a
    tiktoken file."""
    eod: str | None
    """Special token of the existing tokenizer that ends a document; null: one with a usual name, as <|endoftext|>."""
    seed: int
    """Chooses the documents of the sample."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Jobs that `prepare.executor=slurm` starts and ends."""

    jobs: int
    """Number of jobs."""
    cores: int
    """Of each job; one process on each."""
    memory: str
    """Of each job, as in 64GB."""
    time: str
    """Limit of each job, as sbatch takes it."""
    partition: str | None
    """null: as the cluster has it by default."""
    account: str | None
    """null: as the cluster has it by default."""
    sbatch_flags: tuple[str, ...]
    """More of them, as in [--qos=low]."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How `prepare` runs; none of this changes what it writes."""

    executor: Literal["local", "dask", "slurm"]
    """Where documents are cleaned and encoded: on this machine; on the workers of a Dask cluster that is there; on Dask
    workers started as Slurm jobs. All must see data.path and data.inputs under the same paths."""
    num_workers: int | None
    """local: processes; null: one for each core."""
    dask_scheduler: str | None
    """dask: the scheduler's address, as in tcp://node1:8786, or its .json file."""
    slurm: SlurmConfig
    """slurm: the jobs."""
    report: bool
    """Write prepare_report.html beside the shards."""
    overwrite: bool
    """Replace a dataset that was prepared from other text or settings."""
