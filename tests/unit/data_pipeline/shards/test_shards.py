import concurrent.futures
import contextlib
import dataclasses
import gc
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
import wids
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards import mmap_reader, reader
from data_pipeline.shards.format import dtype_for
from data_pipeline.shards.manifest import CorpusRecord, Manifest, TokenizerRecord
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.shards.writer import SplitWriter

DOCUMENTS = [np.random.default_rng(n).integers(0, 420, size=1 + 37 * n % 200) for n in range(60)]


def write(
    folder,
    documents=DOCUMENTS,
    seq_length=8,
    dtype="uint16",
    samples_per_member=4,
    shard_bytes=12_000,
    packing="stream",
):
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, rows in (("train", documents), ("validation", documents[:5])):
        writer = SplitWriter(
            folder,
            split,
            seq_length=seq_length,
            dtype=dtype,
            samples_per_member=samples_per_member,
            shard_bytes=shard_bytes,
            packing=packing,
            eod_id=1,
        )
        for row in rows:
            writer.add(row, 3 * len(row))
        splits[split] = writer.close()
    manifest = Manifest(
        corpus=CorpusRecord(
            name="x",
            digest="d",
            num_documents=1,
            num_bytes=1,
            document_bytes=1,
            num_cut_files=0,
            dropped={"empty": 2},
            changed={},
        ),
        tokenizer=TokenizerRecord(
            file="tokenizer.model", kind="bpe", vocab_size=420, eod_id=1, fingerprint="f", settings_file=""
        ),
        seq_length=seq_length,
        dtype=dtype,
        samples_per_member=samples_per_member,
        packing=packing,
        splits=splits,
        validation_share=0.1,
        sources=(),
        settings={"data.inputs": ["a"]},
    )
    manifest.save(folder)
    return manifest


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "set"
    write(folder)
    return folder


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=12),
    seq_length=st.integers(1, 20),
    samples_per_member=st.integers(1, 7),
    shard_bytes=st.sampled_from([1, 4000, 10**6]),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_every_token_is_predicted_once(tmp_path_factory, lengths, seq_length, samples_per_member, shard_bytes, dtype):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 65536, size=length) for length in lengths]
    folder = tmp_path_factory.mktemp("set")
    manifest = write(folder, documents, seq_length, dtype, samples_per_member, shard_bytes)
    row = np.concatenate([np.empty(0, dtype=np.int64), *documents])
    dataset = PackedDataset.open(folder, "train")
    record = manifest.splits["train"]
    assert dataset.num_samples == record.num_samples == max(0, len(row) - 1) // seq_length
    samples = dataset.read(np.arange(dataset.num_samples))
    assert samples.dtype == dtype
    for number, sample in enumerate(samples):
        assert sample.tolist() == row[number * seq_length : (number + 1) * seq_length + 1].tolist()
    covered = dataset.num_samples * seq_length + 1 if dataset.num_samples else 0
    assert record.num_tail_tokens == len(row) - covered
    assert (record.num_tokens, record.num_text_bytes) == (len(row), 3 * len(row))
    assert record.num_documents == len(lengths)
    assert record.num_padding_tokens == 0 and not dataset.is_padded
    dataset.verify()


def test_samples_come_in_any_order_with_few_shards_mapped(written, monkeypatch):
    monkeypatch.setattr(reader, "MAX_MAPPED_SHARDS", 2)
    dataset = PackedDataset.open(written, "train")
    assert len(dataset.record.shards) > 3
    everything = dataset.read(np.arange(dataset.num_samples))
    order = np.random.default_rng(0).permutation(dataset.num_samples)
    assert np.array_equal(dataset.read(order), everything[order])
    assert len(dataset._mapped) == 2
    dataset.close()
    assert np.array_equal(dataset.read(order[:3]), everything[order[:3]])
    assert dataset.read(order[:0]).shape == (0, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_shards_are_mapped_without_descriptors_and_unmapped(written):
    def mapped():
        return Path("/proc/self/maps").read_text().count(f"{written}/train-")

    def opened():
        links = []
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of this listing, and those of other threads
                links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return [link for link in links if link.startswith(f"{written}/")]

    before = len(opened())
    dataset = PackedDataset.open(written, "train")
    samples = dataset.locate(np.arange(dataset.num_samples))
    assert len(opened()) <= before + 1, "the index has one"
    assert mapped() == len(dataset.record.shards) > 3
    dataset.close()
    assert mapped() == len(dataset.record.shards), "the samples are still there"
    tokens = samples.tokens()
    del samples
    assert mapped() == 0 and np.array_equal(tokens, dataset.read(np.arange(dataset.num_samples)))


def test_webdataset_and_tar_read_the_shards(written):
    dataset = PackedDataset.open(written, "train")
    expected = dataset.read(np.arange(dataset.num_samples))
    urls = [str(written / shard.file) for shard in dataset.record.shards]
    members = [
        np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    assert np.array_equal(np.concatenate(members), expected)
    from_tar = []
    for url in urls:
        with tarfile.open(url) as tar:
            from_tar += [np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False) for member in tar]
    assert np.array_equal(np.concatenate(from_tar), expected)
    offsets = np.load(written / dataset.record.index.file, allow_pickle=False)
    assert len(offsets) == len(members)


def test_wids_reads_the_shards(written, tmp_path):
    dataset = PackedDataset.open(written, "train")
    per_member = dataset.manifest.samples_per_member
    shards = [
        {"url": str(written / shard.file), "nsamples": -(-shard.samples // per_member)}
        for shard in dataset.record.shards
    ]
    members = wids.ShardListDataset(shards, cache_dir=str(tmp_path), transformations=[])
    read = [np.load(members[number][".npy"], allow_pickle=False) for number in range(len(members))]
    assert np.array_equal(np.concatenate(read), dataset.read(np.arange(dataset.num_samples)))


def test_shards_equal_those_of_webdatasets_writer(written, tmp_path):
    for shard in PackedDataset.open(written, "train").record.shards:
        path = tmp_path / shard.file
        fixed = {"user": "pretrain", "group": "pretrain", "mode": 0o444, "mtime": 0}
        with (
            tarfile.open(written / shard.file) as tar,
            webdataset.TarWriter(str(path), encoder=False, **fixed) as writer,
        ):
            for member in tar:
                writer.write({"__key__": member.name.removesuffix(".npy"), "npy": tar.extractfile(member).read()})
        assert path.read_bytes() == (written / shard.file).read_bytes()


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_adding_documents_together_or_singly_gives_equal_bytes(tmp_path, packing):
    one_by_one = write(tmp_path / "one", packing=packing)
    together = SplitWriter(
        tmp_path,
        "train",
        seq_length=8,
        dtype="uint16",
        samples_per_member=4,
        shard_bytes=12_000,
        packing=packing,
        eod_id=1,
    )
    for some in (DOCUMENTS[:7], [], DOCUMENTS[7:]):
        tokens, lengths = np.concatenate([np.empty(0, np.int64), *some]), np.array([*map(len, some)], dtype=np.int64)
        together.add_all(tokens, lengths, 3 * len(tokens))
    assert together.close() == one_by_one.splits["train"]  # with a sha256 of each shard


def test_writing_shards_again_gives_equal_bytes(written, tmp_path):
    manifest = write(tmp_path / "again")
    assert manifest == Manifest.load(written)
    for file in written.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_digest_depends_on_data_not_on_paths(written, tmp_path):
    manifest = Manifest.load(written)
    assert len(manifest.digest) == 64
    assert write(tmp_path / "other", DOCUMENTS[1:]).digest != manifest.digest
    assert dataclasses.replace(manifest, settings={}).digest == manifest.digest


def test_the_narrowest_type_for_the_vocabulary_is_used():
    assert [dtype_for(size) for size in (256, 65536, 65537)] == ["uint16", "uint16", "uint32"]


def test_threads_share_a_dataset_with_few_shards_mapped(written, monkeypatch):
    monkeypatch.setattr(reader, "MAX_MAPPED_SHARDS", 2)
    dataset = PackedDataset.open(written, "train")
    everything = dataset.read(np.arange(dataset.num_samples))
    orders = [np.random.default_rng(seed).permutation(dataset.num_samples) for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for order, tokens in zip(orders, pool.map(dataset.read, orders), strict=True):
            assert np.array_equal(tokens, everything[order])


def test_reading_samples_does_not_accumulate_memory(written):
    def held():
        return sum(issubclass(type(thing), mmap_reader._Memory) for thing in gc.get_objects())

    dataset = PackedDataset.open(written, "train")
    gc.collect()
    gc.disable()
    try:
        dataset.read(np.arange(4))
        before = held()
        assert before, "the shard is mapped"
        for _ in range(5):
            dataset.read(np.arange(4))
        assert held() == before, "memory that only the collector of cycles frees"
    finally:
        gc.enable()
