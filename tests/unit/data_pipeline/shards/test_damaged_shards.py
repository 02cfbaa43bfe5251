"""Damage to a dataset, accidental or malicious, is reported with its file before the data is trained on."""

import dataclasses
import hashlib
import json
import shutil
import threading
import tracemalloc

import numpy as np
import pytest

from data_pipeline.errors import DataError, Stopped
from data_pipeline.shards import reader
from data_pipeline.shards.format import NPY_HEADER_BYTES, TAR_BLOCK, tar_member_bytes
from data_pipeline.shards.manifest import FileRecord, Manifest, _hash
from data_pipeline.shards.reader import PackedDataset
from tests.unit.data_pipeline.shards.test_shards import write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "set"
    write(folder)
    return folder


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


AGAIN = r"[\s\S]*prepare.overwrite=true"
FAULTS_SEEN_WHEN_OPENED = {
    "no manifest": (
        lambda f: (f / "manifest.json").unlink(),
        r"set: not prepared \(no manifest.json\)\n  hint: run `pre",
    ),
    "no folder": (shutil.rmtree, r"set: not prepared"),
    "cut manifest": (cut("manifest.json", 300), r"manifest.json: is not complete JSON" + AGAIN),
    "other JSON": (
        lambda f: (f / "manifest.json").write_text("[]"),
        r"manifest.json: is not the manifest of" + AGAIN,
    ),
    "older format": (
        edit_json(lambda m: m.update(version=1)),
        r"has format version 1, but this program reads 2" + AGAIN,
    ),
    "newer format": (
        edit_json(lambda m: m.update(version=99)),
        r"manifest.json: was written by a newer version of pretrain .*99.*\n  hint: upgrade pretrain$",
    ),
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
def test_opening_a_dataset_names_missing_and_truncated_files(written, tmp_path, fault):
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
def test_a_flipped_bit_is_found_when_its_member_is_read(written, tmp_path, place):
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


def test_a_changed_member_header_is_refused(written, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    path = folder / "train-00000.tar"
    path.write_bytes(path.read_bytes().replace(b"'descr': '<u2'", b"'descr': '|O8'", 1))
    with pytest.raises(DataError, match="train-00000.tar: the content of member 'train-00000000.npy' differs" + AGAIN):
        PackedDataset.open(folder, "train").read(np.arange(4))


def test_swapped_shards_are_named(written, tmp_path):
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


def test_arbitrary_bytes_in_a_member_name_are_not_printed(written, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    path = folder / "train-00000.tar"
    path.write_bytes(bytes(range(128, 256)) * 4 + path.read_bytes()[TAR_BLOCK:])
    with pytest.raises(
        DataError, match="holds no member where member 'train-00000000.npy' should be" + AGAIN
    ) as raised:
        PackedDataset.open(folder, "train").read(np.arange(4))
    assert str(raised.value).isascii() and "\\x" not in str(raised.value)


def test_checking_a_member_does_not_copy_its_shard(tmp_path):
    write(tmp_path / "set", [np.zeros(300_000, dtype=np.uint16)], shard_bytes=10**9)
    dataset = PackedDataset.open(tmp_path / "set", "train")
    assert len(dataset.record.shards) == 1
    tracemalloc.start()
    try:
        dataset.read(np.arange(4))
        assert tracemalloc.get_traced_memory()[1] < dataset.record.shards[0].bytes / 100
    finally:
        tracemalloc.stop()


def test_reordered_members_are_named(written, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    path = folder / "train-00000.tar"
    content, size = path.read_bytes(), tar_member_bytes(NPY_HEADER_BYTES + 4 * 9 * 2)
    path.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    dataset = PackedDataset.open(folder, "train")
    with pytest.raises(DataError, match="'train-00000001.npy' where member 'train-00000000.npy' should be" + AGAIN):
        dataset.read(np.arange(4))
    assert len(dataset.read(np.arange(8, 12))) == 4


def rewrite_manifest(folder, *, index=None, **changes):
    """A consistent index and manifest that someone else may have written."""
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
        ({"index": lambda i: np.where(i == i[0, 0], -512, i)}, "a member offset is not a valid tar offset"),
        ({"index": lambda i: i + 2}, "a member offset is not a valid tar offset"),
        ({"index": lambda i: i[:-1]}, r"has \d+ members, and the shards hold \d+ samples, but the manifest says"),
        ({"index": lambda i: i.ravel()[:-1]}, r"has \d+.5 members, and the shards hold \d+ samples"),
        ({"num_samples": 10**6}, r".* hold \d+ samples, but the manifest says 1000000 samples, 4 in each member"),
    ],
    ids=["before the file", "between blocks", "too few", "half a member", "more samples"],
)
def test_no_index_or_manifest_makes_reads_leave_a_shard(written, tmp_path, how, message):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    rewrite_manifest(folder, **how)
    with pytest.raises(
        DataError, match=f"train.index.npy: {message}.*\n  hint: prepare again with prepare.overwrite=true"
    ):
        PackedDataset.open(folder, "train")


def test_a_shard_truncated_while_in_use_is_named(written, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "POLL_SECONDS", 0.0)
    folder = tmp_path / "set"
    shutil.copytree(written, folder)
    dataset = PackedDataset.open(folder, "train")
    dataset.read(np.arange(4))
    last = dataset.record.shards[0].samples - 1
    with (folder / "train-00000.tar").open("r+b") as file:
        file.truncate(660)
    for samples in (np.arange(4), np.array([last])):  # in a member that was checked, and in one that was not
        with pytest.raises(DataError, match="train-00000.tar: is truncated" + AGAIN):
            dataset.read(samples)


def test_stopping_does_not_wait_for_unchecked_members(written):
    dataset, stop = PackedDataset.open(written, "train"), threading.Event()
    dataset.read(np.arange(4), stop)
    stop.set()
    with pytest.raises(Stopped):
        dataset.read(np.arange(dataset.num_samples), stop)


def test_a_replaced_shard_is_checked_again(written, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "POLL_SECONDS", 0.0)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("dtype"), "manifest.json: must have the keys"),
        (lambda m: m.update(seq_length="8"), "manifest.json: seq_length is '8', but must be an integer"),
        (
            lambda m: m["splits"]["train"]["shards"][1].update(bytes=1.5),
            r"shards\[1\]: bytes is 1.5, but must be an integer",
        ),
    ],
)
def test_a_manifest_with_other_fields_is_refused(written, tmp_path, change, message):
    folder = tmp_path / "set"
    shutil.copytree(written, folder)

    def edit(stored):
        change(stored["manifest"])
        stored["checksum"] = _hash(stored["manifest"])

    edit_json(edit)(folder)
    with pytest.raises(DataError, match=message):
        Manifest.load(folder)
