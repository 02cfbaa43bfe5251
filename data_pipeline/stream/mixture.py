"""Several datasets as one stream, in configured shares that may change during training."""

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.permutation import Positions, shuffled_indices
from data_pipeline.shards.folder import DatasetFolder
from data_pipeline.shards.manifest import ShardRecord
from data_pipeline.shards.mmap_reader import Samples
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.mixture_segments import MAX_POSITION, Component, Mixture


class MixedDataset:
    """The training splits of several prepared datasets, read as one stream."""

    def __init__(self, datasets: Mapping[str, PackedDataset], mixture: Mixture) -> None:
        self.parts, self.mixture = tuple(datasets.values()), mixture
        self.names, self.end_position = tuple(datasets), mixture.end_position
        self.manifest = self.parts[0].manifest
        """The first dataset's manifest. All have the same tokenizer and sequence length."""
        self.seq_length, self.dtype = self.manifest.seq_length, self.parts[0].dtype
        self._bases = np.cumsum([0, *(dataset.num_samples for dataset in self.parts)], dtype=np.int64)
        self.num_samples = int(self._bases[-1])

    @property
    def description(self) -> str:
        """The dataset's name for messages."""
        return "the mixture of " + ", ".join(str(dataset.folder) for dataset in self.parts)

    @property
    def skips_bad_shards(self) -> bool:
        """Whether samples of bad shards are skipped and counted."""
        return self.parts[0].skips_bad_shards

    @property
    def is_padded(self) -> bool:
        """Whether targets may be padding, which the loss ignores."""
        return any(dataset.is_padded for dataset in self.parts)

    @property
    def num_train_tokens(self) -> int:
        return sum(dataset.num_train_tokens for dataset in self.parts)

    def sample_indices(self, positions: Positions, seed: int) -> npt.NDArray[np.int64]:
        """The sample numbers at these positions, numbered through all datasets."""
        which, index = self.mixture.assign(positions)
        numbers = np.empty_like(index)
        for item, dataset in enumerate(self.parts):
            chosen = which == item
            if chosen.any():
                own_seed = seed_of(seed, self.names[item])
                numbers[chosen] = self._bases[item] + shuffled_indices(index[chosen], dataset.num_samples, own_seed)
        return numbers

    def shards_of(self, numbers: npt.NDArray[np.int64]) -> Iterator[tuple[int, DatasetFolder, ShardRecord]]:
        """The shards that contain these samples, each with the index in `numbers` of its first use."""
        for dataset, chosen, inside in self._by_part(numbers):
            for place, folder, record in dataset.shards_of(inside):
                yield int(chosen[place]), folder, record

    def sample_hashes(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """A hash of each sample's content."""
        names = np.empty(len(numbers), dtype=np.uint64)
        for dataset, chosen, inside in self._by_part(numbers):
            names[chosen] = dataset.sample_hashes(inside)
        return names

    def locate(
        self,
        numbers: npt.NDArray[np.int64],
        stop: threading.Event | None = None,
        skipped: npt.NDArray[np.bool_] | None = None,
    ) -> Samples:
        """Locate at least one sample, in the given order. For `stop` and `skipped` see PackedDataset."""
        found = []
        for dataset, chosen, inside in self._by_part(numbers):
            its_skipped = None if skipped is None else np.zeros(len(chosen), dtype=bool)
            found.append((chosen, dataset.locate(inside, stop, its_skipped)))
            if skipped is not None:
                skipped[chosen] = its_skipped
        return Samples.joined(found)

    def _by_part(
        self, numbers: npt.NDArray[np.int64]
    ) -> Iterator[tuple[PackedDataset, npt.NDArray[np.intp], npt.NDArray[np.int64]]]:
        """Each dataset that holds some of these samples, their indices in `numbers`, and their numbers in that
        dataset."""
        which = np.searchsorted(self._bases, numbers, side="right") - 1
        for item, dataset in enumerate(self.parts):
            chosen = np.flatnonzero(which == item)
            if len(chosen):
                yield dataset, chosen, numbers[chosen] - self._bases[item]

    def epoch_at(self, position: int) -> int:
        """Complete passes over the dataset with the most passes."""
        taken = self.mixture.taken(position)
        return max(count // dataset.num_samples for count, dataset in zip(taken, self.parts, strict=True))

    def digest_before(self, position: int) -> str:
        """Identifies everything that decides the samples before a position. Later weights may change, earlier ones
        not."""
        content = [
            [[name, dataset.manifest.digest] for name, dataset in zip(self.names, self.parts, strict=True)],
            self.mixture.before(position),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


TrainingData = PackedDataset | MixedDataset
"""The data of a run: one dataset or a mixture."""


def seed_of(seed: int, name: str) -> int:
    """Gives each dataset its own order, independent of the others in the mixture."""
    return int.from_bytes(hashlib.blake2b(f"mixture:{seed}:{name}".encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class MixturePlan:
    """A mixture as configured: by name, in tokens and epochs."""

    weights: Mapping[str, float]
    max_epochs: Mapping[str, float]
    later: Sequence[tuple[int, Mapping[str, float]]]
    """Weights that replace the first ones after this many training tokens."""


def open_mixture(
    plan: MixturePlan, folders: Mapping[str, Path] | Mapping[str, DatasetFolder], *, skip_bad_shards: bool = False
) -> MixedDataset:
    """Open the datasets in these folders as a mixture. For `skip_bad_shards` see PackedDataset.open.

    Raises DataError if a dataset is missing, or if they differ in tokenizer or sequence length.
    """
    datasets = {
        name: PackedDataset.open(folder, "train", skip_bad_shards=skip_bad_shards) for name, folder in folders.items()
    }
    (first_name, first), *others = datasets.items()
    for name, dataset in others:
        its_tokenizer = first.folder.path_of(first.manifest.tokenizer.file)
        for what, there, here in (
            ("tokenizer (fingerprint)", first.manifest.tokenizer.fingerprint, dataset.manifest.tokenizer.fingerprint),
            ("model.seq_length", first.seq_length, dataset.seq_length),
        ):
            if there != here:
                raise DataError(
                    f"data.mixture: {folders[name]} has another {what} than {folders[first_name]} ({here}, {there})",
                    f"prepare it again with that one's (tokenizer.path={its_tokenizer})",
                )
    components = [
        Component(name, dataset.num_samples, _cap(name, plan.max_epochs.get(name), dataset.num_samples))
        for name, dataset in datasets.items()
    ]
    phases = {0: plan.weights} | {-(-tokens // first.seq_length): weights for tokens, weights in plan.later}
    by_number = [(start, [weights.get(name, 0.0) for name in datasets]) for start, weights in phases.items()]
    return MixedDataset(datasets, Mixture(components, by_number))


def _cap(name: str, epochs: float | None, num_samples: int) -> int | None:
    if epochs is None:
        return None
    cap = math.floor(min(epochs * num_samples, MAX_POSITION))
    if not cap:
        raise DataError(
            f"data.mixture_max_epochs.{name}={epochs}: allows none of its {num_samples:,} samples",
            "raise it",
            f"remove {name} from data.mixture",
        )
    return cap
