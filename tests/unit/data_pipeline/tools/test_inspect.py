"""`pretrain data` shows what the dataset holds, and finds and names every damage."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.format import NPY_HEADER_BYTES, TAR_BLOCK, member_hash
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tools.inspect import END_OF_DOCUMENT, as_text, inspect, stats, verify
from tests.support.corpus import make_texts, prepare_synthetic, write_jsonl

TEXTS = make_texts(60)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspection")
    # Documents are held out by hash, so the held-out ones are not in the train split.
    prepare_synthetic(folder / "set", [write_jsonl(folder / "texts.jsonl", TEXTS)])
    return folder / "set"


@pytest.fixture
def dataset(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "set"))


def test_inspected_text_marks_the_end_of_each_document(prepared: Path) -> None:
    dataset = PackedDataset.open(prepared, "train")
    rows = dataset.read(np.arange(dataset.num_samples)).astype(np.int64)
    tokenizer = load_tokenizer(prepared / "tokenizer.model")
    *documents, tail = as_text(np.append(rows[0, 0], rows[:, 1:].ravel()), tokenizer).split(f"\n{END_OF_DOCUMENT}\n")
    held_out = as_text(
        PackedDataset.open(prepared, "validation").read(np.array([0])).astype(np.int64)[0], tokenizer
    ).split(f"\n{END_OF_DOCUMENT}\n")[0]
    train = [text for text in TEXTS if text in documents]
    assert documents == train and len(train) >= dataset.record.num_documents - 1
    assert any(text.startswith(held_out) for text in TEXTS if text not in train)
    assert not tail or any(text.startswith(tail) for text in TEXTS)


def test_samples_are_shown_by_number(prepared: Path) -> None:
    dataset, tokenizer = PackedDataset.open(prepared, "train"), load_tokenizer(prepared / "tokenizer.model")
    for number, block in zip((3, 4), inspect(prepared, "train", 3, 2), strict=True):
        ids = dataset.read(np.array([number])).astype(np.int64)[0]
        head, text = block.split("\n", 1)
        ends = int((ids == tokenizer.eod_id).sum())
        assert head.startswith(f"--- train sample {number}: 17 tokens, {ends} document end")
        assert text == as_text(ids, tokenizer)


def test_with_a_seed_samples_are_in_a_runs_order(prepared: Path) -> None:
    dataset = PackedDataset.open(prepared, "train")
    stream = train_batches(dataset, seed=7, global_batch_size=4, rank=0, size=1, position=8)
    tokens = next(stream).tokens.numpy()
    stream.close()
    numbers = [
        int(block.split()[3].rstrip(":").replace(",", "")) for block in inspect(prepared, "train", 8, 4, shuffled_by=7)
    ]
    assert np.array_equal(dataset.read(np.array(numbers)), tokens)


def test_samples_out_of_range_are_refused_with_the_range(prepared: Path) -> None:
    count = PackedDataset.open(prepared, "validation").num_samples
    with pytest.raises(DataError, match=rf"has samples 0 to {count - 1}, but {count - 1} to {count} were requested"):
        list(inspect(prepared, "validation", count - 1, 2))


@pytest.mark.parametrize("shuffled_by", [None, 7])
def test_huge_sample_numbers_are_refused(prepared: Path, shuffled_by: int | None) -> None:
    with pytest.raises(
        DataError, match=r"has (samples|positions) 0 to [\d,]+, but .*,999 to 100,.*,001 were requested"
    ):
        list(inspect(prepared, "train", 10**20 - 1, 3, shuffled_by=shuffled_by))


def test_a_sample_is_shown_before_the_next_is_read(prepared: Path) -> None:
    first = next(inspect(prepared, "train", 0, 10**15, shuffled_by=7))
    assert [first] == list(inspect(prepared, "train", 0, 1, shuffled_by=7))


def test_stats_match_the_manifest(prepared: Path) -> None:
    figures, manifest = stats(prepared), Manifest.load(prepared)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["digest"] == manifest.digest
    assert sum(split["documents"] for split in figures["splits"].values()) == len(TEXTS)
    train = manifest.splits["train"]
    assert figures["splits"]["train"]["bytes_per_token"] == pytest.approx(
        train.num_text_bytes / train.num_tokens, abs=1e-3
    )


def test_an_intact_dataset_has_no_faults(prepared: Path) -> None:
    assert verify(prepared) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [(flip_a_bit, "sha256 does not match"), (cut_short, "the manifest says"), (Path.unlink, "missing")],
)
@pytest.mark.parametrize("name", ["train-00000.tar", "validation-00000.tar", "train.index.npy"])
def test_every_damaged_file_is_named(dataset: Path, name: str, damage: Callable[[Path], None], words: str) -> None:
    damage(dataset / name)
    faults = verify(dataset)
    assert len(faults) == 1 and name in faults[0] and words in faults[0]


def test_all_faults_are_reported_at_once(dataset: Path) -> None:
    flip_a_bit(dataset / "train-00000.tar")
    cut_short(dataset / "validation.index.npy")
    flip_a_bit(dataset / "tokenizer.model")
    assert len(verify(dataset)) == 3


def test_a_manifest_edited_by_hand_is_refused(dataset: Path) -> None:
    path = dataset / "manifest.json"
    path.write_text(path.read_text().replace('"seq_length": 16', '"seq_length": 17', 1))
    with pytest.raises(DataError, match="was changed after it was written"):
        verify(dataset)


def rewrite(dataset: Path, name: str, offset: int, content: bytes) -> None:
    """Change bytes of a train file and update manifest and checksums, as if it had been written wrongly."""
    path = dataset / name
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)
    manifest = Manifest.load(dataset)

    def repaired(record: Any) -> Any:
        fits = record.file != name
        return record if fits else dataclasses.replace(record, sha256=hashlib.sha256(whole).hexdigest())

    train = manifest.splits["train"]
    train = dataclasses.replace(train, shards=tuple(map(repaired, train.shards)), index=repaired(train.index))
    dataclasses.replace(manifest, splits=manifest.splits | {"train": train}).save(dataset)


def test_a_token_beyond_the_vocabulary_is_found(dataset: Path) -> None:
    begin, manifest = TAR_BLOCK, Manifest.load(dataset)
    end = begin + NPY_HEADER_BYTES + manifest.samples_per_member * 17 * 2
    token_of_sample_1 = begin + NPY_HEADER_BYTES + 2 * 17
    rewrite(dataset, "train-00000.tar", token_of_sample_1, np.array([420], dtype="<u2").tobytes())
    its_hash = member_hash((dataset / "train-00000.tar").read_bytes()[begin:end])
    rewrite(dataset, "train.index.npy", NPY_HEADER_BYTES + 8, np.array([its_hash], dtype="<i8").tobytes())
    (fault,) = verify(dataset)
    assert "train sample 1 has the token 420, but the tokenizer has only 420" in fault


def test_a_wrong_offset_is_found(dataset: Path) -> None:
    rewrite(dataset, "train.index.npy", NPY_HEADER_BYTES + 16, np.array([512], dtype="<i8").tobytes())
    rewrite(dataset, "train.index.npy", NPY_HEADER_BYTES, np.array([1024], dtype="<i8").tobytes())
    (fault,) = verify(dataset)
    assert "train-00000.tar: holds " in fault and "where member 'train-00000000.npy' should be" in fault
