"""With data.on_bad_shard=skip, a bad shard's samples keep their positions and do not count. Nothing else changes."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import BadFile, DataError
from data_pipeline.remote.folder import RemoteFolder
from data_pipeline.shards import reader
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import Batch, train_batches
from data_pipeline.stream.mixture import MixturePlan, TrainingData, open_mixture
from tests.support import http_server as faulty
from tests.support.corpus import cache_config
from tests.support.http_server import Fault, serving
from tests.unit.data_pipeline.shards.test_shards import write

SHARD = "train-00001.tar"
END = 1
NUM_BATCHES = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "set"
    write(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "set")


def take(dataset: TrainingData, *, rank: int = 0, size: int = 1, number: int = NUM_BATCHES) -> list[Batch]:
    stream = train_batches(dataset, seed=3, global_batch_size=8, rank=rank, size=size, position=0)
    batches = list(itertools.islice(stream, number))
    stream.close()  # type: ignore[attr-defined]
    return batches


def bad_samples(dataset: PackedDataset, shards: tuple[str, ...] = (SHARD,)) -> set[int]:
    """Numbers of the samples of these shards."""
    ends = np.cumsum([record.samples for record in dataset.record.shards])
    return {
        sample
        for end, record in zip(ends.tolist(), dataset.record.shards, strict=True)
        if record.file in shards
        for sample in range(end - record.samples, end)
    }


def check(batches: list[Batch], dataset: PackedDataset, whole: list[Batch]) -> int:
    """Check that everything except the samples of SHARD is undisturbed. Returns how many of those occurred."""
    bad = bad_samples(dataset)
    for batch, undisturbed in zip(batches, whole, strict=True):
        numbers = dataset.sample_indices(np.arange(batch.position, batch.next_position), 3).tolist()
        is_bad = torch.tensor([number in bad for number in numbers])
        assert torch.equal(batch.tokens[~is_bad], undisturbed.tokens[~is_bad])
        assert (batch.tokens[is_bad] == END).all()
        assert batch.mask is not None and torch.equal(batch.mask, ~is_bad[:, None].expand_as(batch.mask))
        assert batch.num_skipped == int(is_bad.sum()) and undisturbed.num_skipped == 0
        assert (batch.digest == undisturbed.digest) == (batch.num_skipped == 0)
        assert (batch.position, batch.epoch) == (undisturbed.position, undisturbed.epoch)
    return sum(batch.num_skipped for batch in batches)


def says_once(caplog: pytest.LogCaptureFixture, *words: str) -> None:
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and all(word in errors[0] for word in (*words, SHARD, "samples are skipped and counted"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def spoil_headers(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"'descr': '<u2'", b"'descr': '|O8'"))


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


WAYS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "missing (No such file"),
    "truncated": (truncate, "bytes, the manifest says"),
    "with other headers": (spoil_headers, "differs from what `prepare` wrote"),
    "unreadable": (put_a_folder, "bytes, the manifest says"),
}
WAYS_IN_USE: dict[str, tuple[Callable[[Path], None], str]] = {
    "removed": (Path.unlink, "cannot be opened (No such file"),
    "emptied": (lambda path: path.write_bytes(b""), "is truncated"),
    "unreadable": (put_a_folder, "is not a regular file"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_shard_that_is_bad_at_the_start_is_skipped_and_counted(written, folder, caplog, way):
    damage, message = WAYS[way]
    damage(folder / SHARD)
    dataset = PackedDataset.open(folder, "train", skip_bad_shards=True)
    assert check(take(dataset), dataset, take(PackedDataset.open(written, "train"))) > 0
    says_once(caplog, message)
    with pytest.raises(DataError, match=SHARD):
        take(PackedDataset.open(folder, "train"))


@pytest.mark.parametrize("way", WAYS_IN_USE)
def test_a_shard_damaged_before_its_first_use_is_skipped(written, folder, caplog, way):
    damage, message = WAYS_IN_USE[way]
    dataset, strict = (PackedDataset.open(folder, "train", skip_bad_shards=skip) for skip in (True, False))
    damage(folder / SHARD)
    assert check(take(dataset), dataset, take(PackedDataset.open(written, "train"))) > 0
    says_once(caplog, message)
    with pytest.raises(BadFile, match=SHARD):
        take(strict)


def test_a_shard_truncated_while_in_use_is_then_skipped(written, folder, caplog, monkeypatch):
    monkeypatch.setattr(reader, "POLL_SECONDS", 0.0)
    dataset = PackedDataset.open(folder, "train", skip_bad_shards=True)
    before = take(dataset)
    assert not any(batch.num_skipped for batch in before)
    with (folder / SHARD).open("r+b") as file:
        file.truncate(0)
    assert check(take(dataset), dataset, before) > 0
    says_once(caplog, "is truncated")


def test_a_bad_shard_is_skipped_with_few_shards_mapped(written, folder, monkeypatch):
    whole = take(PackedDataset.open(written, "train"))
    monkeypatch.setattr(reader, "MAX_MAPPED_SHARDS", 2)
    truncate(folder / SHARD)
    dataset = PackedDataset.open(folder, "train", skip_bad_shards=True)
    assert check(take(dataset), dataset, whole) > 0


FAULTS = [faulty.status(404), faulty.status(503), faulty.flipped, faulty.cut]


@pytest.mark.parametrize("fault", FAULTS, ids=["404", "503", "flipped", "cut"])
def test_a_bad_remote_shard_is_skipped_and_counted(written, tmp_path, caplog, fault: Fault):
    with serving(written) as served:
        served.lasting[SHARD] = fault
        where = RemoteFolder(served.url, cache_config(tmp_path / "cache", retries=1))
        dataset = PackedDataset.open(where, "train", skip_bad_shards=True)
        assert check(take(dataset), dataset, take(PackedDataset.open(written, "train"))) > 0
        says_once(caplog)
        asked = served.requests[SHARD]
        take(dataset)
        # Prefetching may try as often again. Reads of its samples no longer try.
        assert served.requests[SHARD] <= asked + 2
        with pytest.raises(BadFile, match=SHARD):
            take(PackedDataset.open(where, "train"))


def test_a_transient_fault_skips_nothing(written, tmp_path):
    with serving(written) as served:
        served.fault(SHARD, faulty.flipped)
        where = RemoteFolder(served.url, cache_config(tmp_path / "cache"))
        batches = take(PackedDataset.open(where, "train", skip_bad_shards=True))
    for batch, local in zip(batches, take(PackedDataset.open(written, "train")), strict=True):
        assert torch.equal(batch.tokens, local.tokens) and batch.digest == local.digest
        assert batch.num_skipped == 0 and batch.mask is not None and batch.mask.all() and local.mask is None


def test_a_fault_of_this_machine_does_not_make_a_shard_bad(written, tmp_path):
    (tmp_path / "file").write_text("")
    with serving(written) as served:
        dataset = PackedDataset.open(
            RemoteFolder(served.url, cache_config(tmp_path / "cache")), "train", skip_bad_shards=True
        )
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("in the way")
        with pytest.raises(DataError, match=r"data\.cache\.dir"):
            take(dataset)


def test_all_ranks_together_skip_what_one_rank_skips(folder):
    (folder / SHARD).unlink()
    dataset = PackedDataset.open(folder, "train", skip_bad_shards=True)
    alone = take(dataset)
    ranks = [take(dataset, rank=rank, size=4) for rank in range(4)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sum(part.num_skipped for part in parts) == whole.num_skipped
        assert (sum(part.digest for part in parts) - whole.digest) % 2**64 == 0
        assert all(part.mask is not None for part in parts), "an engine asks for masks on all ranks or on none"


def test_bad_index_manifest_or_validation_still_stop(folder):
    (folder / "validation-00000.tar").unlink()
    PackedDataset.open(folder, "train", skip_bad_shards=True)
    with pytest.raises(DataError, match=r"validation-00000\.tar: missing"):
        PackedDataset.open(folder, "validation")
    truncate(folder / "train.index.npy")
    with pytest.raises(DataError, match=r"train\.index\.npy: has"):
        PackedDataset.open(folder, "train", skip_bad_shards=True)


def test_a_dataset_without_any_good_shard_is_refused(folder):
    for path in folder.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"(\d+) of \1 shards for train cannot be used; the first: .*train-00000.tar: missing"
    ):
        PackedDataset.open(folder, "train", skip_bad_shards=True)


def test_the_stream_ends_with_an_error_when_all_shards_are_bad(folder, monkeypatch):
    monkeypatch.setattr(reader, "POLL_SECONDS", 0.0)
    dataset = PackedDataset.open(folder, "train", skip_bad_shards=True)
    take(dataset)
    for path in folder.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(
        DataError,
        match=r"(\d+) of \1 shards for train cannot be used; the first: .*tar: .*\n  hint: restore the shards",
    ):
        take(dataset)


def test_a_server_without_any_shard_is_an_error(written, tmp_path):
    with serving(written) as served:
        where = RemoteFolder(served.url, cache_config(tmp_path / "cache"))
        dataset = PackedDataset.open(where, "train", skip_bad_shards=True)
        served.lasting |= {record.file: faulty.status(404) for record in dataset.record.shards}
        with pytest.raises(DataError, match=r"(\d+) of \1 shards for train cannot be used; the first: .*404"):
            take(dataset)


def test_a_mixture_skips_only_the_bad_shard(written, folder, caplog):
    plan, folders = MixturePlan({"set": 0.5, "whole": 0.5}, {}, []), {"set": folder, "whole": written}
    undisturbed = take(open_mixture(plan, folders))
    (folder / SHARD).unlink()
    dataset = open_mixture(plan, folders, skip_bad_shards=True)
    bad, skipped = bad_samples(dataset.parts[0]), 0
    for batch, whole in zip(take(dataset), undisturbed, strict=True):
        numbers = dataset.sample_indices(np.arange(batch.position, batch.next_position), 3).tolist()
        counts = torch.tensor([number not in bad for number in numbers])
        assert batch.mask is not None and torch.equal(batch.mask[:, 0], counts)
        assert torch.equal(batch.tokens[counts], whole.tokens[counts])
        skipped += batch.num_skipped
    assert skipped > 0
    says_once(caplog, str(folder))


def test_padding_is_masked_also_when_shards_are_skipped(tmp_path, written):
    write(tmp_path / "packed", packing="best_fit")
    whole = take(PackedDataset.open(tmp_path / "packed", "train"))
    (tmp_path / "packed" / SHARD).unlink()
    dataset = PackedDataset.open(tmp_path / "packed", "train", skip_bad_shards=True)
    bad = bad_samples(dataset)
    for batch, undisturbed in zip(take(dataset), whole, strict=True):
        numbers = dataset.sample_indices(np.arange(batch.position, batch.next_position), 3).tolist()
        for number, mask, as_before in zip(numbers, batch.mask, undisturbed.mask, strict=True):
            assert torch.equal(mask, as_before) if number not in bad else not mask.any()
