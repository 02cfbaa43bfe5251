"""The configuration of the data pipeline: frozen records without heavy imports."""

from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.errors import DataError

LEAST_SHARE = 2.0**-20
"""Smallest share of a dataset in a mixture. Shares are whole multiples of it."""


@dataclass(frozen=True, kw_only=True)
class NearDedupConfig:
    """Near-duplicate detection with MinHash. The later one of two similar documents is left out."""

    shingle_words: int
    """Number of consecutive words in a shingle."""
    bands: int
    """Number of bands of a signature. Documents that agree in all rows of a band are compared."""
    rows: int
    """Number of rows in a band. More rows find fewer duplicates with fewer useless comparisons."""
    similarity: float
    """Smallest estimated Jaccard similarity at which a document counts as a duplicate."""
    seed: int
    """Seed of the MinHash permutations."""

    def __post_init__(self) -> None:
        for key in ("shingle_words", "bands", "rows"):
            if getattr(self, key) < 1:
                raise DataError(f"data.near_dedup.{key}={getattr(self, key)}: must be at least 1")
        if not 0 < self.similarity <= 1:
            raise DataError(
                f"data.near_dedup.similarity={self.similarity}: must be above 0 and at most 1 (Jaccard similarity)"
            )

    @property
    def permutations(self) -> int:
        return self.bands * self.rows


@dataclass(frozen=True, kw_only=True)
class MixturePhase:
    """Mixture weights that apply from some point of training on, for example for annealing."""

    after_tokens: int
    """Number of training tokens before this phase."""
    weights: dict[str, float]
    """Weights as in `mixture`. A dataset that is not named is left out."""


@dataclass(frozen=True, kw_only=True)
class DecontaminateConfig:
    """Removal of documents that share a run of words with these texts, before or after data.steps (Brown et al. 2020,
    appendix C)."""

    inputs: tuple[str, ...]
    """Files and folders of texts to keep out, in the form of data.inputs. Empty: no document is removed."""
    text_key: str
    """Key or column that holds the text in these files."""
    ngram: int
    """Number of consecutive words that count as a match."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Reading of remote files, and the cache of shards on this node."""

    dir: str | None
    """Folder of the cache on a local disk. null: pretrain/shards in XDG_CACHE_HOME or ~/.cache."""
    max_bytes: int
    """Size limit of the cache, shared by all runs that use the folder. The least recently used shards are deleted
    first."""
    retries: int
    """Number of retries for a file after a timeout, a broken connection, a server error, a short answer or a wrong
    checksum."""
    retry_seconds: float
    """Average wait before the first retry. It doubles for each further one."""
    timeout_seconds: float
    """Seconds to wait for the next bytes of a server or command, at most a day. Listing files may take ten times as
    long."""
    allow_pipe: bool
    """Whether data.path may be `pipe:COMMAND`. The command runs without a shell and prints {file}."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Input text, its cleaning, and the packed dataset."""

    name: str
    """Name of the corpus, shown in the manifest, logs and reports."""
    path: str
    """Folder of the prepared dataset. `prepare` writes it and `train` reads it. To train, it may be a URL such as
    s3://bucket/set."""
    inputs: tuple[str, ...]
    """Input files, folders or URLs, or `stdlib:` for the standard library of Python. The file name decides how a file
    is read: .jsonl, .ndjson and .json as JSON lines, .parquet by rows, any other as plain text. .gz and .zst are
    decompressed."""
    include: tuple[str, ...]
    """Patterns for the names of files in input folders, case-insensitive. Hidden files, and READMEs beside JSON lines
    or Parquet, are skipped. Files named in data.inputs are always read."""
    text_key: str
    """Key of the text in each JSON line, or column of the text in a .parquet file."""
    encoding_errors: Literal["fail", "skip"]
    """Treatment of a document that is not UTF-8, cannot be encoded by tokenizer.path, or is a broken JSON line.
    fail: stop and name it. skip: leave it out and count it."""
    max_document_bytes: int
    """Longer text files are split at line ends into several documents, which bounds memory."""
    steps: tuple[dict[str, Any], ...]
    """Cleaning steps for each document, in this order, as in [{step: gopher_quality}, {step: pii, email: mask}].
    docs/data.md lists the steps and their settings."""
    dedup: Literal["none", "exact", "near"]
    """Deduplication over all inputs, which keeps the first copy. exact: equal documents. near: also similar
    documents."""
    near_dedup: NearDedupConfig
    """Near-duplicate detection with MinHash. Only used with dedup=near."""
    decontaminate: DecontaminateConfig
    """Texts to keep out of the training data, such as benchmarks."""
    validation_fraction: float
    """Fraction of documents held out for validation, chosen by a hash of their content."""
    validation_min_bytes: int
    """Smallest size of the validation split. More documents are held out, in order of their hash, until it has this
    many bytes or half the corpus."""
    samples_per_member: int
    """Number of packed samples in one tar member."""
    shard_bytes: int
    """Size in bytes at which a new shard is started."""
    packing: Literal["stream", "best_fit"]
    """How documents become samples. stream: cut out of one long sequence of all documents. best_fit: documents are
    placed side by side so that only those longer than a sample are cut. The rest of a sample is padded; padding counts
    as trained tokens but not in the loss."""
    mixture: dict[str, float] | None
    """Weights of several prepared datasets in the folder that holds data.path, as shares of tokens, as in {web: 0.7,
    code: 0.3}. A weight is 0 or at least a millionth of their sum. null: train on data.path only."""
    mixture_max_epochs: dict[str, float] | None
    """Largest number of passes over a dataset of the mixture, as in {code: 4}. The other datasets replace it
    afterwards. A dataset that is not named has no limit."""
    mixture_later: tuple[MixturePhase, ...]
    """Later phases of the mixture, in order, as in [{after_tokens: 9e9, weights: {books: 1}}]."""
    document_mask: bool
    """true: a token attends to its own document only, and positions start at 0 in each document. false: a token attends
    to all earlier tokens of its sample. In both cases the first token of a document is predicted from the end of the
    previous one and counts in the loss."""
    on_bad_shard: Literal["stop", "skip"]
    """Treatment of a shard that stays missing, unreadable or damaged. stop: stop and name it. skip: name it, leave
    its samples out and count them. The other samples keep their order."""
    cache: CacheConfig
    """Reading of remote files and the cache of shards. Used if data.path or data.inputs are URLs."""


KEYS_OF_READING = ("mixture", "mixture_max_epochs", "mixture_later", "document_mask", "on_bad_shard", "cache")
"""Keys that do not change a prepared dataset."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A SentencePiece tokenizer trained on the corpus, or an existing tokenizer."""

    kind: Literal["bpe", "unigram"]
    """Algorithm of the SentencePiece tokenizer."""
    vocab_size: int
    """Size of the vocabulary, including byte and control pieces."""
    sample_bytes: int
    """Largest number of bytes that the tokenizer is trained on. Whole documents are chosen by a seeded hash."""
    path: str | None
    """Existing tokenizer to use instead of training one: a SentencePiece .model, a Hugging Face tokenizer.json, or a
    tiktoken file."""
    eod: str | None
    """Special token of the existing tokenizer that ends a document. null: one with a usual name, such as
    <|endoftext|>."""
    seed: int
    """Seed for choosing the documents that the tokenizer is trained on."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Slurm jobs of `prepare.executor=slurm`."""

    jobs: int
    """Number of jobs."""
    cores: int
    """Number of cores of each job. Each core runs one process."""
    memory: str
    """Memory of each job, as in 64GB."""
    time: str
    """Time limit of each job, in the form that sbatch takes."""
    partition: str | None
    """Slurm partition. null: the cluster's default."""
    account: str | None
    """Slurm account. null: the cluster's default."""
    sbatch_flags: tuple[str, ...]
    """Additional flags of sbatch, as in [--qos=low]."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How `prepare` runs. These settings do not change its output."""

    executor: Literal["local", "dask", "slurm"]
    """Machines that clean and encode documents. local: on this machine. dask: on the workers of a running Dask cluster.
    slurm: on Dask workers started as Slurm jobs. All workers must see data.path and data.inputs at the same paths."""
    num_workers: int | None
    """Number of local processes. null: one per core."""
    dask_scheduler: str | None
    """Address of the Dask scheduler, as in tcp://node1:8786, or its .json file."""
    slurm: SlurmConfig
    """Slurm jobs of executor=slurm."""
    report: bool
    """Whether to write prepare_report.html beside the shards."""
    overwrite: bool
    """Whether to replace a dataset that was prepared from other text or settings."""
