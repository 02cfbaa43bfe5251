"""A merged dataset has its parts' samples in order, and misleading combinations are refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.shards.token_rows import rows_of
from data_pipeline.tools.convert import to_megatron
from data_pipeline.tools.inspect import stats, verify
from data_pipeline.tools.megatron import IndexedDataset
from data_pipeline.tools.merge import merge
from tests.support.corpus import make_texts, prepare_synthetic, tokenizer_config, write_jsonl

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three datasets with one tokenizer. Their last members are partly filled; `c` has larger members."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = tokenizer_config(path=str(folder / "a" / "tokenizer.model"))
    for seed, name in enumerate("abc"):
        source = write_jsonl(folder / f"{name}.jsonl", [*make_texts(40 + seed, seed=seed), *[""] * seed])
        given: dict[str, Any] = {} if name == "a" else {"tokenizer": tokenizer}
        prepare_synthetic(folder / name, [source], name=name, samples_per_member=9 if name == "c" else 4, **given)
    return {name: folder / name for name in "abc"}


def read_all(folder: Path, split: Any) -> Any:
    dataset = PackedDataset.open(folder, split)
    return dataset.read(np.arange(dataset.num_samples))


def test_merged_samples_are_in_order_and_counts_add_up(parts: dict[str, Path], tmp_path: Path) -> None:
    assert any(Manifest.load(path).splits["train"].num_samples % 4 for path in (parts["a"], parts["b"]))
    merged = merge([parts["a"], parts["b"], parts["c"]], tmp_path / "all")
    assert verify(tmp_path / "all") == [] and Manifest.load(tmp_path / "all") == merged
    manifests = [Manifest.load(path) for path in parts.values()]
    for split in SPLITS:
        expected = np.concatenate([read_all(path, split) for path in parts.values()])
        assert np.array_equal(read_all(tmp_path / "all", split), expected)
        for figure in ("num_samples", "num_documents", "num_tokens", "num_text_bytes", "num_tail_tokens"):
            assert getattr(merged.splits[split], figure) == sum(getattr(m.splits[split], figure) for m in manifests)
    assert merged.corpus.num_documents == 123 and merged.corpus.dropped == {"empty": 3}
    assert merged.corpus.num_bytes == sum(manifest.corpus.num_bytes for manifest in manifests)
    recorded = merged.settings["merged"]
    assert [(part["name"], part["digest"]) for part in recorded] == [(m.corpus.name, m.digest) for m in manifests]
    assert stats(tmp_path / "all")["name"] == "all" and merged.samples_per_member == 4


def test_merging_again_gives_equal_bytes(parts: dict[str, Path], tmp_path: Path) -> None:
    for place in ("one", "two"):
        merge([parts["a"], parts["b"]], tmp_path / place / "ab")
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / p / "ab").iterdir()} for p in ("one", "two"))
    assert one == two
    merge([tmp_path / "one" / "ab", parts["c"]], tmp_path / "abc")
    at_once = merge([parts["a"], parts["b"], parts["c"]], tmp_path / "at_once")
    nested = Manifest.load(tmp_path / "abc")
    assert nested.splits == at_once.splits and nested.settings == at_once.settings


def test_documents_of_different_parts_stay_apart_when_exported(parts: dict[str, Path], tmp_path: Path) -> None:
    merge([parts["a"], parts["b"]], tmp_path / "ab")
    figures = to_megatron(tmp_path / "ab", tmp_path / "out")
    for split in SPLITS:
        rows = [list(rows_of(PackedDataset.open(parts[name], split))) for name in "ab"]  # type: ignore[arg-type]
        tokens = [np.concatenate(list(row)) for (row,) in rows]
        eod = Manifest.load(parts["a"]).tokenizer.eod_id
        documents = [
            piece.tolist() for row in tokens for piece in np.split(row, np.flatnonzero(row == eod) + 1) if len(piece)
        ]
        assert [ids.tolist() for ids in IndexedDataset(tmp_path / "out" / split)] == documents
        assert figures[split]["tokens"] == sum(map(len, tokens))


def test_duplicate_text_is_refused_also_in_merged_parts(parts: dict[str, Path], tmp_path: Path) -> None:
    again = shutil.copytree(parts["a"], tmp_path / "copy")
    for folders in ([parts["a"], parts["a"]], [parts["a"], parts["b"], Path(again)]):
        with pytest.raises(DataError, match=r"contain the same text \(a, corpus digest [0-9a-f]{12}\)"):
            merge(folders, tmp_path / "all")
    merge([parts["a"], parts["b"]], tmp_path / "ab")
    with pytest.raises(DataError, match=r"b and .*ab contain the same text \(b, "):
        merge([tmp_path / "ab", parts["b"]], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_incompatible_parts_are_refused_with_a_hint(parts: dict[str, Path], tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", make_texts(40, seed=9))
    prepare_synthetic(tmp_path / "other", [source], tokenizer=tokenizer_config(vocab_size=400))
    with pytest.raises(
        DataError, match=r"other: has another tokenizer .* than .*a .*\n.*tokenizer.path=.*a/tokenizer.model"
    ):
        merge([parts["a"], tmp_path / "other"], tmp_path / "all")
    longer = tokenizer_config(path=str(parts["a"] / "tokenizer.model"))
    prepare_synthetic(tmp_path / "longer", [source], seq_length=32, tokenizer=longer)
    with pytest.raises(DataError, match=r"longer: has another model.seq_length than .*a \(32, 16\)"):
        merge([parts["a"], tmp_path / "longer"], tmp_path / "all")
    with pytest.raises(DataError, match=r"a: is only one dataset\n  hint: name at least two"):
        merge([parts["a"]], tmp_path / "all")
    (tmp_path / "all").mkdir()
    with pytest.raises(DataError, match=r"all: exists already, and nothing is overwritten"):
        merge([parts["a"], parts["b"]], tmp_path / "all")


@pytest.mark.parametrize("name", ["train-00000.tar", "validation.index.npy", "tokenizer.model"])
def test_merging_a_damaged_part_names_it_and_writes_nothing(parts: dict[str, Path], tmp_path: Path, name: str) -> None:
    damaged = Path(shutil.copytree(parts["a"], tmp_path / "damaged"))
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"damaged/{name}: "):
        merge([damaged, parts["b"]], tmp_path / "all")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
