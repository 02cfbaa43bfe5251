import concurrent.futures
import dataclasses
import gc
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset
import wids
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, Stopped
from data_pipeline.shards import mapped, reader
from data_pipeline.shards.layout import NPY_HEADER_BYTES, TAR_BLOCK, dtype_for, tar_member_bytes
from data_pipeline.shards.manifest import CorpusRecord, FileRecord, Manifest, TokenizerRecord, _hash
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
def test_shards_are_mapped_without_a_descriptor_each_and_let_go_with_the_last_sample_of_them(written):
    def mapped():
        return Path("/proc/self/maps").read_text().count(f"{written}/train-")

    before = len(os.listdir("/proc/self/fd"))
    dataset = PackedDataset.open(written, "train")
    samples = dataset.find(np.arange(dataset.num_samples))
    assert len(os.listdir("/proc/self/fd")) <= before + 1, "the index has one"
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


def test_an_index_of_wids_over_the_shards_reads_them(written, tmp_path):
    dataset = PackedDataset.open(written, "train")
    per_member = dataset.manifest.samples_per_member
    shards = [
        {"url": str(written / shard.file), "nsamples": -(-shard.samples // per_member)}
        for shard in dataset.record.shards
    ]
    members = wids.ShardListDataset(shards, cache_dir=str(tmp_path), transformations=[])
    read = [np.load(members[number][".npy"], allow_pickle=False) for number in range(len(members))]
    assert np.array_equal(np.concatenate(read), dataset.read(np.arange(dataset.num_samples)))


def test_shards_have_the_bytes_that_webdatasets_own_writer_writes(written, tmp_path):
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
def test_documents_given_together_give_the_bytes_of_documents_given_one_by_one(tmp_path, packing):
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


def test_shards_made_again_are_byte_identical(written, tmp_path):
    manifest = write(tmp_path / "again")
    assert manifest == Manifest.load(written)
    for file in written.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_digest_names_the_data_not_the_paths(written, tmp_path):
    manifest = Manifest.load(written)
    assert len(manifest.digest) == 64
    assert write(tmp_path / "other", DOCUMENTS[1:]).digest != manifest.digest
    assert dataclasses.replace(manifest, settings={}).digest == manifest.digest


def test_narrowest_type_that_holds_the_vocabulary():
    assert [dtype_for(size) for size in (256, 65536, 65537)] == ["uint16", "uint16", "uint32"]


def edit_json(change):
    def damage(folder):
        path = folder / "manifest.json"
        stored = json.loads(path.read_text())
        change(stored)
        path.write_text(json.dumps(stored))

    return damage


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def flip(name, place):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return damage


AGAIN = ".*prepare.overwrite=true"
FAULTS_SEEN_WHEN_OPENED = {
    "no manifest": (
        lambda f: (f / "manifest.json").unlink(),
        r"set: not prepared \(no manifest.json\): run `pre",
    ),
    "no folder": (shutil.rmtree, r"set: not prepared"),
    "cut manifest": (cut("manifest.json", 300), r"manifest.json: not whole JSON" + AGAIN),
    "other JSON": (
        lambda f: (f / "manifest.json").write_text("[]"),
        r"manifest.json: is not the manifest of" + AGAIN,
    ),
    "newer format": (edit_json(lambda m: m.update(version=99)), r"has format version 99, this program reads 2" + AGAIN),
    "edited": (
        edit_json(lambda m: m["manifest"].update(seq_length=16)),
        r"manifest.json: was changed after it was written" + AGAIN,
    ),
    "missing shard": (lambda f: (f / "train-00001.tar").unlink(), r"train-00001.tar: missing \(No such file" + AGAIN),
    "cut shard": (cut("train-00002.tar", 5000), r"train-00002.tar: has 5000 bytes, the manifest says \d+" + AGAIN),
    "cut index": (cut("train.index.npy", 150), r"train.index.npy: has 150 bytes, the manifest says" + AGAIN),
    "flipped index": (flip("train.index.npy", 130), r"train.index.npy: its content differs" + AGAIN),
}


@pytest.mark.parametrize("fault", FAULTS_SEEN_WHEN_OPENED)
def test_faults_are_named_when_a_dataset_is_opened(written, tmp_path, fault):
    damage, message = FAULTS_SEEN_WHEN_OPENED[fault]
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        PackedDataset.open(folder, "train")


def test_a_flipped_bit_is_found_by_verify(written, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    flip("train-00001.tar", 700)(folder)
    dataset = PackedDataset.open(folder, "train")
    with pytest.raises(DataError, match="train-00001.tar: its content differs" + AGAIN):
        dataset.verify()


@pytest.mark.parametrize(
    "place", [TAR_BLOCK, TAR_BLOCK + NPY_HEADER_BYTES, TAR_BLOCK + NPY_HEADER_BYTES + 4 * 9 * 2 - 1]
)
def test_a_bit_flipped_anywhere_in_a_member_is_found_when_any_sample_of_it_is_read(written, tmp_path, place):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    flip("train-00000.tar", place)(folder)
    dataset = PackedDataset.open(folder, "train")
    assert np.array_equal(dataset.read(np.arange(4, 8)), PackedDataset.open(written, "train").read(np.arange(4, 8)))
    for sample in range(4):
        with pytest.raises(
            DataError, match="train-00000.tar: the content of member 'train-00000000.npy' differs" + AGAIN
        ):
            dataset.read(np.array([sample]))


def test_a_header_that_claims_anything_else_is_refused(written, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    path = folder / "train-00000.tar"
    path.write_bytes(path.read_bytes().replace(b"'descr': '<u2'", b"'descr': '|O8'", 1))
    with pytest.raises(DataError, match="train-00000.tar: the content of member 'train-00000000.npy' differs" + AGAIN):
        PackedDataset.open(folder, "train").read(np.arange(4))


def test_shards_that_changed_places_are_named(written, tmp_path):
    """Both have the length that the manifest states."""
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    one, other = folder / "train-00000.tar", folder / "train-00001.tar"
    assert one.stat().st_size == other.stat().st_size
    one.rename(folder / "aside"), other.rename(one), (folder / "aside").rename(other)
    with pytest.raises(
        DataError, match="train-00000.tar: holds 'train-.*npy' where member 'train-00000000.npy'" + AGAIN
    ):
        PackedDataset.open(folder, "train").read(np.arange(4))


def test_a_member_that_is_read_first_takes_no_copy_of_its_shard(tmp_path):
    write(tmp_path / "set", [np.zeros(300_000, dtype=np.uint16)], shard_bytes=10**9)
    dataset = PackedDataset.open(tmp_path / "set", "train")
    assert len(dataset.record.shards) == 1
    tracemalloc.start()
    try:
        dataset.read(np.arange(4))
        assert tracemalloc.get_traced_memory()[1] < dataset.record.shards[0].bytes / 100
    finally:
        tracemalloc.stop()


def test_members_in_another_order_are_named(written, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    path = folder / "train-00000.tar"
    content, size = path.read_bytes(), tar_member_bytes(NPY_HEADER_BYTES + 4 * 9 * 2)
    path.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    dataset = PackedDataset.open(folder, "train")
    with pytest.raises(DataError, match="'train-00000001.npy' where member 'train-00000000.npy' should be" + AGAIN):
        dataset.read(np.arange(4))
    assert len(dataset.read(np.arange(8, 12))) == 4


def written_anew(folder, *, index=None, **changes):
    """The index and the manifest, consistent with each other, as someone else may have written them."""
    manifest = Manifest.load(folder)
    record = dataclasses.replace(manifest.splits["train"], **changes)
    if index is not None:
        path = folder / record.index.file
        content = path.read_bytes()[:NPY_HEADER_BYTES] + index(np.load(path)).astype("<i8").tobytes()
        path.write_bytes(content)
        its_record = FileRecord(file=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        record = dataclasses.replace(record, index=its_record)
    dataclasses.replace(manifest, splits=manifest.splits | {"train": record}).save(folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"index": lambda i: np.where(i == i[0, 0], -512, i)}, "has a member that begins where no tar has one"),
        ({"index": lambda i: i + 2}, "has a member that begins where no tar has one"),
        ({"index": lambda i: i[:-1]}, r"has \d+ members, and the shards hold \d+ samples, where the manifest says"),
        ({"index": lambda i: i.ravel()[:-1]}, r"has \d+.5 members, and the shards hold \d+ samples"),
        ({"num_samples": 10**6}, r".* hold \d+ samples, where the manifest says 1000000, 4 in each member"),
    ],
    ids=["before the file", "between blocks", "too few", "half a member", "more samples"],
)
def test_nothing_outside_of_a_shard_is_read_whatever_index_and_manifest_say(written, tmp_path, how, message):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    written_anew(folder, **how)
    with pytest.raises(DataError, match=f"train.index.npy: {message}.*; prepare again with prepare.overwrite=true"):
        PackedDataset.open(folder, "train")


def test_a_shard_that_shrinks_while_in_use_is_named(written, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "SECONDS_BETWEEN_LOOKS", 0.0)
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    dataset = PackedDataset.open(folder, "train")
    dataset.read(np.arange(4))
    last = dataset.record.shards[0].samples - 1
    with (folder / "train-00000.tar").open("r+b") as file:
        file.truncate(660)
    for samples in (np.arange(4), np.array([last])):  # in a member that was looked at, and in one that was not
        with pytest.raises(DataError, match="train-00000.tar: ends too early" + AGAIN):
            dataset.read(samples)


def test_who_waits_no_longer_is_not_kept_by_members_that_are_still_to_be_compared(written):
    dataset, stop = PackedDataset.open(written, "train"), threading.Event()
    dataset.read(np.arange(4), stop)
    stop.set()
    with pytest.raises(Stopped):
        dataset.read(np.arange(dataset.num_samples), stop)


def test_a_shard_that_was_put_there_anew_is_compared_again(written, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "SECONDS_BETWEEN_LOOKS", 0.0)
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    dataset = PackedDataset.open(folder, "train")
    whole = dataset.read(np.arange(4))
    path = folder / "train-00000.tar"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=r"train-00000.tar: cannot be opened \(No such file"):
        dataset.read(np.arange(4))
    path.write_bytes(content)
    flip(path.name, 700)(folder)
    with pytest.raises(DataError, match=r"train-00000.tar: the content of member 'train-00000000.npy' differs"):
        dataset.read(np.arange(4))
    path.write_bytes(content)
    assert np.array_equal(dataset.read(np.arange(4)), whole)


def test_threads_share_a_dataset_with_few_shards_mapped(written, monkeypatch):
    monkeypatch.setattr(reader, "MAX_MAPPED_SHARDS", 2)
    dataset = PackedDataset.open(written, "train")
    everything = dataset.read(np.arange(dataset.num_samples))
    orders = [np.random.default_rng(seed).permutation(dataset.num_samples) for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for order, tokens in zip(orders, pool.map(dataset.read, orders), strict=True):
            assert np.array_equal(tokens, everything[order])


def test_nothing_is_kept_of_samples_that_were_read(written):
    def held():
        return sum(issubclass(type(thing), mapped._Memory) for thing in gc.get_objects())

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("dtype"), "manifest.json: must have the keys"),
        (lambda m: m.update(seq_length="8"), "manifest.json: seq_length is '8', must be int"),
        (
            lambda m: m["splits"]["train"]["shards"][1].update(bytes=1.5),
            r"shards\[1\]: bytes is 1.5, must be int",
        ),
    ],
)
def test_a_manifest_of_another_shape_is_refused(written, tmp_path, change, message):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)

    def edit(stored):
        change(stored["manifest"])
        stored["checksum"] = _hash(stored["manifest"])

    edit_json(edit)(folder)
    with pytest.raises(DataError, match=message):
        Manifest.load(folder)
