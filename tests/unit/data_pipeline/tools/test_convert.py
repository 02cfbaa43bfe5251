"""Megatron-LM's reader accepts what we write, and we read what its builder writes, token for token."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.shards.token_rows import rows_of
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tools import convert
from data_pipeline.tools.inspect import verify
from data_pipeline.tools.megatron import HEADER, IndexedDataset, IndexedWriter
from tests.support.corpus import data_config, make_texts, prepare_synthetic, tokenizer_config, write_jsonl

TEXTS = make_texts(60)
SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Megatron-core's module."""
    from pretrain.distributed.vendor_imports import megatron_imports

    with megatron_imports():
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversion")
    prepare_synthetic(folder / "set", [write_jsonl(folder / "texts.jsonl", TEXTS)])
    return folder / "set"


@pytest.fixture(scope="module")
def documents(prepared: Path) -> list[list[int]]:
    """Token IDs of the texts, without an end."""
    tokenizer = load_tokenizer(prepared / "tokenizer.model")
    return [tokenizer.encode(text) for text in TEXTS]


def build(theirs: Any, prefix: Path, documents: Sequence[Sequence[int]], dtype: Any = np.int32) -> Path:
    """A pair of files by Megatron's own builder."""
    import torch

    builder = theirs.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def to_packed(prefix: Path, target: Path, tokenizer: Path, seq_length: int = 16, **changes: Any) -> Manifest:
    data = data_config(target, [], **changes)
    given = tokenizer_config(path=str(tokenizer))
    return convert.to_packed(prefix, target, data, given, seq_length=seq_length)


def packed_documents(folder: Path, split: Any) -> list[list[int]]:
    """Documents of a packed split with their ends. The last one may be cut."""
    dataset = PackedDataset.open(folder, split)
    (row,) = (np.concatenate(list(row)) for row in rows_of(dataset))
    found = np.split(row, np.flatnonzero(row == dataset.manifest.tokenizer.eod_id) + 1)
    return [piece.tolist() for piece in found if len(piece)]


def test_megatrons_reader_gets_every_token_in_order(theirs: Any, prepared: Path, tmp_path: Path) -> None:
    figures = convert.to_megatron(prepared, tmp_path / "out")
    manifest = Manifest.load(prepared)
    for split in SPLITS:
        dataset = theirs.IndexedDataset(str(tmp_path / "out" / split), multimodal=False)
        expected = packed_documents(prepared, split)
        assert [piece.tolist() for piece in dataset] == expected
        assert dataset.document_indices.tolist() == list(range(len(expected) + 1))
        record = manifest.splits[split]
        assert figures[split]["documents"] == len(expected) and figures[split]["documents without their end"] in (0, 1)
        assert figures[split]["tokens"] == record.num_samples * 16 + 1 == record.num_tokens - record.num_tail_tokens
        assert sum(figures[split].values()) - len(expected) - figures[split]["documents without their end"] == (
            record.num_tokens
        )
    assert load_tokenizer(tmp_path / "out" / "tokenizer.model").fingerprint == manifest.tokenizer.fingerprint
    assert dataset.index.dtype == np.uint16


def test_documents_of_megatrons_builder_are_packed_completely(
    theirs: Any, prepared: Path, documents: list[list[int]], tmp_path: Path
) -> None:
    eod = Manifest.load(prepared).tokenizer.eod_id
    # Half of them end as --append-eod leaves them. Two are empty, with and without an end.
    given = [[*ids, eod] if number % 2 else ids for number, ids in enumerate(documents)]
    prefix = build(theirs, tmp_path / "text.v2", [*given, [], [eod]])
    manifest = to_packed(prefix, tmp_path / "set", prepared / "tokenizer.model")
    assert verify(tmp_path / "set") == []
    assert manifest.corpus.num_documents == len(TEXTS) and manifest.corpus.dropped == {"empty": 2}
    sides = {split: packed_documents(tmp_path / "set", split) for split in SPLITS}
    expected = [[*ids, eod] for ids in documents]
    for split, found in sides.items():
        whole = found if found[-1][-1] == eod else found[:-1]
        inside = [ids for ids in expected if ids in whole]
        assert whole == inside and len(found) == manifest.splits[split].num_documents
    assert sum(map(len, sides.values())) == len(TEXTS)
    # The same figures as if the text had been prepared here.
    assert manifest.corpus.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert sum(manifest.splits[split].num_tokens for split in SPLITS) == sum(map(len, expected))
    assert manifest.splits["validation"].num_text_bytes >= 2000


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_redundant_end_tokens_are_removed_and_counted(
    theirs: Any, prepared: Path, documents: list[list[int]], tmp_path: Path, packing: str
) -> None:
    eod = Manifest.load(prepared).tokenizer.eod_id
    plain = [[*ids[:30], eod, *ids[30:]] for ids in documents]
    with_ends = [[eod, eod, *ids[:30], eod, eod, eod, *ids[30:], eod, eod] for ids in documents]
    manifests = []
    for name, given in (("plain", [[*ids, eod] for ids in plain]), ("ends", [*with_ends, [eod, eod]])):
        prefix, target = build(theirs, tmp_path / name, given), tmp_path / f"{name} packed" / "set"
        manifests.append(to_packed(prefix, target, prepared / "tokenizer.model", packing=packing))
    expected, found = manifests
    assert found.splits == expected.splits and found.corpus.digest == expected.corpus.digest
    assert expected.corpus.changed == {} and found.corpus.changed == {"needless_ends": len(documents)}
    assert found.corpus.dropped == {"empty": 1}
    for record in found.splits.values() if packing == "best_fit" else ():
        assert record.num_samples * 17 == record.num_tokens + record.num_padding_tokens and not record.num_tail_tokens


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.int16])
def test_token_type_copies_and_order_do_not_change_the_split(
    theirs: Any, prepared: Path, documents: list[list[int]], tmp_path: Path, dtype: Any
) -> None:
    first = to_packed(build(theirs, tmp_path / "a", documents), tmp_path / "one", prepared / "tokenizer.model")
    again = build(theirs, tmp_path / "b", documents, dtype)
    assert to_packed(again, tmp_path / "two" / "one", prepared / "tokenizer.model").digest == first.digest
    reversed_ = build(theirs, tmp_path / "c", [*documents[::-1], documents[0]], dtype)
    to_packed(reversed_, tmp_path / "three", prepared / "tokenizer.model", validation_min_bytes=0)
    to_packed(again, tmp_path / "four", prepared / "tokenizer.model", validation_min_bytes=0)
    held_out = [
        {tuple(ids) for ids in packed_documents(tmp_path / name, "validation")[:-1]} for name in ("three", "four")
    ]
    trained = [{tuple(ids) for ids in packed_documents(tmp_path / name, "train")} for name in ("three", "four")]
    assert not held_out[0] & trained[1] and not held_out[1] & trained[0]


def test_a_document_of_several_sequences_is_one(theirs: Any, prepared: Path, documents: Any, tmp_path: Path) -> None:
    import torch

    builder = theirs.IndexedDatasetBuilder(str(tmp_path / "s.bin"), dtype=np.uint16)
    for ids in documents:
        builder.add_item(torch.tensor(ids[:7]))
        builder.add_item(torch.tensor(ids[7:]))
        builder.end_document()
    builder.finalize(str(tmp_path / "s.idx"))
    assert [ids.tolist() for ids in IndexedDataset(tmp_path / "s")] == documents
    whole = to_packed(build(theirs, tmp_path / "w", documents), tmp_path / "one" / "set", prepared / "tokenizer.model")
    assert to_packed(tmp_path / "s.idx", tmp_path / "set", prepared / "tokenizer.model").digest == whole.digest


def test_converting_there_and_back_gives_the_same_tokens(prepared: Path, tmp_path: Path) -> None:
    convert.to_megatron(prepared, tmp_path / "out")
    stored = tmp_path / "out" / "tokenizer.model"
    to_packed(tmp_path / "out" / "train", tmp_path / "back", stored, validation_min_bytes=500, validation_fraction=0.05)
    back = [ids for split in SPLITS for ids in packed_documents(tmp_path / "back", split)[:-1]]
    train = packed_documents(prepared, "train")
    assert all(ids in train for ids in back) and len(train) - len(back) <= 2


def test_a_mismatched_tokenizer_causes_a_warning(
    theirs: Any, prepared: Path, documents: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = build(theirs, tmp_path / "other", [[*ids, 300] for ids in documents])
    to_packed(prefix, tmp_path / "set", prepared / "tokenizer.model")
    assert (
        "every document ends with the token 300, which is not this tokenizer's end-of-document token (1)" in caplog.text
    )


def rewrite(path: Path, offset: int, content: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 4)


FAULTS: list[tuple[str, Callable[[Path, Path], None], str]] = [
    ("a cut .bin", lambda b, i: cut(b), r"t.bin: has \d+ bytes, but t.idx has sequence 59 of .* it is truncated"),
    (
        "a longer .bin",
        lambda b, i: lengthen(b),
        r"t.bin: has \d+ bytes, but t.idx describes \d+; the two files do not belong",
    ),
    ("a cut .idx", lambda b, i: cut(i), r"t.idx: has \d+ bytes, but its header says \d+; it is truncated"),
    ("a header alone", lambda b, i: i.write_bytes(i.read_bytes()[:20]), r"t.idx: is not a Megatron-LM index"),
    (
        "other magic",
        lambda b, i: rewrite(i, 0, b"TNTIDX"),
        r"t.idx: is not a Megatron-LM index: it begins with other bytes",
    ),
    ("another version", lambda b, i: rewrite(i, 9, b"\2"), r"t.idx: has format version 2, but this program reads 1"),
    ("floats", lambda b, i: rewrite(i, 17, b"\7"), r"t.idx: its tokens are float32, but must be integers"),
    ("no type", lambda b, i: rewrite(i, 17, b"\x63"), r"t.idx: its tokens are of unknown type 99"),
    ("wrong counts", lambda b, i: rewrite(i, 18, b"\xff" * 8), r"t.idx: has \d+ bytes, but its header says \d{20}"),
    ("a negative size", lambda b, i: rewrite(i, 34, b"\xff" * 4), r"t.idx: has a negative size or offset"),
    (
        "a place beyond",
        lambda b, i: rewrite(i, 34 + 60 * 4, struct.pack("<q", 2**62)),
        rf"t.bin: has .* has sequence 0 .* at byte {2**62}",
    ),
    (
        "documents out of order",
        lambda b, i: rewrite(i, HEADER.size + 12 * 60 + 8, struct.pack("<q", 50)),
        r"t.idx: its documents do not partition its 60 sequences",
    ),
    (
        "modes",
        lambda b, i: i.write_bytes(i.read_bytes() + bytes(60)),
        r"t.idx: has modes, so the dataset holds more than text",
    ),
    ("no .bin", lambda b, i: b.unlink(), r"t.bin: cannot be read \(No such file"),
    ("no .idx", lambda b, i: i.unlink(), r"t.idx: cannot be read \(No such file"),
    (
        "a foreign token",
        lambda b, i: rewrite(b, 0, struct.pack("<i", 420)),
        r"document 0 has the token 420, but the tokeni",
    ),
    (
        "a token below 0",
        lambda b, i: rewrite(b, 4, struct.pack("<i", -1)),
        r"document 0 has the token -1, but the tokenizer",
    ),
]


@pytest.fixture(scope="module")
def pair(theirs: Any, documents: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(theirs, tmp_path_factory.mktemp("pair") / "t", documents)


@pytest.mark.parametrize(("damage", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_every_damage_is_named_and_leaves_no_files(
    pair: Path, prepared: Path, tmp_path: Path, damage: Callable[[Path, Path], None], message: str
) -> None:
    for suffix in (".bin", ".idx"):
        (tmp_path / f"t{suffix}").write_bytes(pair.with_suffix(suffix).read_bytes())
    damage(tmp_path / "t.bin", tmp_path / "t.idx")
    with pytest.raises(DataError, match=message):
        to_packed(tmp_path / "t", tmp_path / "set", prepared / "tokenizer.model")
    assert all(path.name.startswith("t.") for path in tmp_path.iterdir())


def test_nothing_is_overwritten(pair: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match=r"mine: exists already, and nothing is overwritten"):
        to_packed(pair, tmp_path / "mine", prepared / "tokenizer.model")
    with pytest.raises(DataError, match=r"mine: exists already"):
        convert.to_megatron(prepared, tmp_path / "mine")
    with pytest.raises(DataError, match=r"tokenizer.path=null: must be the tokenizer that made these tokens"):
        convert.to_packed(pair, tmp_path / "x", data_config(tmp_path, []), tokenizer_config(), seq_length=16)
    with pytest.raises(
        DataError, match=r"the validation split has \d+ tokens, too few for one sample of model.seq_len"
    ):
        to_packed(pair, tmp_path / "x", prepared / "tokenizer.model", seq_length=3000)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_dataset_is_not_converted(prepared: Path, tmp_path: Path) -> None:
    import shutil

    damaged = Path(shutil.copytree(prepared, tmp_path / "set"))
    rewrite(damaged / "train-00000.tar", 2000, b"\xff\xff")
    with pytest.raises(DataError, match=r"train-00000.tar: its content differs"):
        convert.to_megatron(damaged, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_large_vocabularies_are_stored_in_int32_as_megatron_does(theirs: Any, tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "big", "<i4")
    writer.add(np.array([1, 70_000, 3], dtype=np.uint32), np.array([2]))
    assert writer.close() == 2
    dataset = theirs.IndexedDataset(str(tmp_path / "big"), multimodal=False)
    assert [ids.tolist() for ids in dataset] == [[1, 70_000], [3]] and dataset.index.dtype == np.int32
