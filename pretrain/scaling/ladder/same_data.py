"""All runs of a ladder have one tokenizer and one held-out text: else their losses are not on one scale."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.shards.folder import LocalFolder
from data_pipeline.stream.dataset_locations import dataset_folders
from pretrain.config.run import RunConfig
from pretrain.scaling.ladder.cells import Cell
from pretrain.tracking.provenance import DESCRIPTION_FILE

KINDS = {"tokenizer_fingerprint": "tokenizers", "corpus_digest": "validation sets"}
"""Keys in the description of a run, and what they identify."""


def check_same_data(cells: Sequence[Cell], configs: Sequence[RunConfig]) -> None:
    """Raise UserError if runs that were started have another tokenizer or text than the runs to come, or each other.

    `configs`: those of the runs to come.
    """
    seen: dict[str, tuple[str, str]] = {}
    for place, facts in [*_of_runs(cells), *_of_datasets(configs)]:
        for key, value in facts.items():
            first_place, first = seen.setdefault(key, (place, value))
            if value != first:
                raise UserError(
                    f"mixed {KINDS[key]}: {first_place} has {first}, {place} has {value}",
                    "the losses of one ladder must be on one scale: restore the dataset, or choose another name",
                )


def _of_runs(cells: Sequence[Cell]) -> Iterator[tuple[str, dict[str, str]]]:
    for cell in cells:
        try:
            data = json.loads((Path(cell.run_dir) / DESCRIPTION_FILE).read_bytes())["data"]
            yield cell.name, {key: str(data[key]) for key in KINDS}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not started


def _of_datasets(configs: Sequence[RunConfig]) -> Iterator[tuple[str, dict[str, str]]]:
    known: dict[str, dict[str, str]] = {}
    for config in configs:
        folders = dataset_folders(config.data)
        place = ", ".join(map(str, folders.values()))
        if place not in known and all(isinstance(folder, LocalFolder) for folder in folders.values()):
            manifests = [folder.manifest() for folder in folders.values()]
            digests = ", ".join(manifest.corpus.digest for manifest in manifests)
            tokenizer = manifests[0].tokenizer.fingerprint
            known[place] = {"tokenizer_fingerprint": tokenizer, "corpus_digest": digests}
    yield from ((f"the dataset in {place}", facts) for place, facts in known.items())
