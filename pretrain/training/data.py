"""The data of a run: opened, checked against the model, and compared with the data of a checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.dataset_locations import dataset_folders
from data_pipeline.stream.mixture import MixedDataset, MixturePlan, TrainingData, open_mixture
from data_pipeline.stream.shard_prefetch import check_cache_holds
from pretrain.config.changes import Change, to_accept
from pretrain.config.derived import model_vocab_size
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.run import RunConfig
from pretrain.run.length import RunLength
from pretrain.run.state import RunState

if TYPE_CHECKING:
    from data_pipeline.stream.loader import Batch
    from pretrain.distributed.groups import ProcessGroups


def open_datasets(config: RunConfig) -> tuple[TrainingData, dict[str, PackedDataset]]:
    """Open the training data, checked against the model, and the validation split of each dataset by its name."""
    data, folders = config.data, dataset_folders(config.data)
    dataset: TrainingData
    skip = data.on_bad_shard == "skip"
    if data.mixture is None:
        dataset = PackedDataset.open(folders[data.name], "train", skip_bad_shards=skip)
    else:
        later = [(phase.after_tokens, phase.weights) for phase in data.mixture_later]
        dataset = open_mixture(
            MixturePlan(data.mixture, data.mixture_max_epochs or {}, later), folders, skip_bad_shards=skip
        )
    packed, wanted = dataset.manifest.seq_length, config.model.seq_length
    if packed != wanted:
        rule = f"the dataset in data.path={str(next(iter(folders.values())))!r} was packed for {packed} tokens"
        remedy = f"set model.seq_length={packed}, or prepare again with model.seq_length={wanted} and another data.path"
        raise ConfigError([Problem("model.seq_length", wanted, rule, remedy)])
    known = dataset.manifest.tokenizer.vocab_size
    if vocab_size_of(config, dataset) < known:
        rule = f"must be at least the tokenizer's {known}"
        raise ConfigError([Problem("model.vocab_size", config.model.vocab_size, rule, "null: the tokenizer's")])
    validation = {name: PackedDataset.open(folder, "validation") for name, folder in folders.items()}
    check_cache_holds([*dataset.parts, *validation.values()])
    return dataset, validation


def vocab_size_of(config: RunConfig, dataset: TrainingData) -> int:
    """The number of tokens that the model predicts."""
    return model_vocab_size(config.model, dataset.manifest.tokenizer.vocab_size)


def check_enough_data(config: RunConfig, dataset: TrainingData, state: RunState) -> None:
    """Raise ConfigError if a mixture with data.mixture_max_epochs ends before the run, which is at `state`."""
    end = dataset.end_position
    needed = RunLength.of(config).end_position(state)
    if end is not None and end < needed:
        rule = f"the mixture ends after {end:,} samples, the run takes {needed:,}"
        remedy = "raise data.mixture_max_epochs, shorten the run, or give more text"
        raise ConfigError([Problem("data.mixture_max_epochs", config.data.mixture_max_epochs, rule, remedy)])


def epochs_at(dataset: TrainingData, position: int) -> dict[str, float]:
    """The epochs of each dataset in the samples before a position, by its name."""
    if isinstance(dataset, MixedDataset):
        taken = dataset.mixture.taken(position)
        parts = zip(dataset.names, taken, dataset.parts, strict=True)
        return {name: count / part.num_samples for name, count, part in parts}
    return {dataset.manifest.corpus.name: position / dataset.num_samples}


def batches_from(
    position: int,
    config: RunConfig,
    dataset: TrainingData,
    groups: "ProcessGroups",
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator["Batch"]:
    """This rank's training batches from a position on. `should_stop` ends the wait for a batch, and the batches."""
    from data_pipeline.stream.loader import train_batches

    return train_batches(
        dataset,
        seed=config.run.seed,
        global_batch_size=config.train.global_batch_size,
        rank=groups.replica,
        size=groups.layout.replicas,
        position=position,
        should_stop=should_stop,
    )


def check_same_data(
    saved: Mapping[str, Any], dataset: TrainingData, folder: Path, accepted: Sequence[str]
) -> list[Change]:
    """The changes of the data since a checkpoint, up to its position.

    Raises RunError if they are not accepted, or the vocabulary has another size.
    """
    tokenizer, position = dataset.manifest.tokenizer, int(saved["state"]["position"])
    changes = [
        change
        for change in (
            Change("tokenizer", saved.get("tokenizer_fingerprint"), tokenizer.fingerprint),
            Change("data", saved.get("dataset_digest"), dataset.digest_before(position)),
        )
        if change.before != change.now
    ]
    refused = [change for change in changes if change.key not in accepted]
    of_model = saved.get("config", {}).get("model", {}).get("vocab_size")
    before, now = saved.get("vocab_size"), of_model or tokenizer.vocab_size
    if before == now and not refused:
        return changes
    names = {"tokenizer": "tokenizer fingerprint", "data": "dataset digest"}
    differences = ", ".join(f"{names[change.key]} {change.before} there, {change.now} now" for change in changes)
    remedy = (
        f"another tokenizer is accepted only with the same vocabulary size: {before} there, {now} now"
        if before != now
        else f"to continue with other data, add {to_accept(accepted, refused)}"
    )
    raise RunError(
        f"{folder}: {differences} in {dataset.description}: the run was trained on other data",
        "set data.path to the old dataset (data.mixture to the old datasets and weights; later weights may change), or "
        "choose another run.name",
        remedy,
    )
