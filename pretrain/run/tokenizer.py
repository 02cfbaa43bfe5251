"""Checks a run's tokenizer at the start and copies it into the run folder, so that sampling needs no dataset."""

import logging
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.errors import MissingPackage
from data_pipeline.stream.dataset_locations import dataset_folders
from data_pipeline.stream.mixture import TrainingData
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.config.errors import RunError

TOKENIZER_FOLDER = "tokenizer"

log = logging.getLogger(__name__)


def check_tokenizer(dataset: TrainingData) -> TokenizerFiles | None:
    """The files of the dataset's tokenizer; raises DataError if they differ from its manifest.

    All datasets of a mixture have the same tokenizer, so that of the first is read. None: its tokens are
    not text, such as the pseudo-random tokens of `pretrain bench`.
    """
    folder, manifest = dataset.parts[0].folder, dataset.manifest
    if not manifest.tokenizer.file:
        return None
    files = folder.tokenizer_files(manifest)
    try:
        files.load(manifest.tokenizer.fingerprint)
    except MissingPackage as error:  # training needs no tokenizer
        log.warning("the tokenizer is kept with the run unchecked: %s", error.one_line)
    return files


def keep_tokenizer(run: Path, files: TokenizerFiles) -> None:
    """Copy the files into the run folder, replacing any that are there."""
    files.write(run / TOKENIZER_FOLDER)


def tokenizer_place(run: Path, data: DataConfig) -> str:
    """The place where `tokenizer_of` finds the tokenizer, for messages."""
    kept = run / TOKENIZER_FOLDER
    return str(kept) if kept.is_dir() else data.path


def tokenizer_of(run: Path, data: DataConfig) -> Tokenizer:
    """The tokenizer in the run folder, or else that of the dataset."""
    kept = run / TOKENIZER_FOLDER
    if kept.is_dir():
        files = TokenizerFiles.only_one_in(kept)
        if files is None:
            raise RunError(f"{kept}: has no tokenizer", "remove this folder to use the tokenizer in data.path")
        return files.load()
    folder = next(iter(dataset_folders(data).values()))
    return folder.tokenizer(folder.manifest())
