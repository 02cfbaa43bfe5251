"""Best-fit packing: no token is lost or repeated, no document is cut unnecessarily, and padding is recognizable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.prepare.dataset import summarize
from data_pipeline.shards.packing import BestFitPacker, best_fit, loss_mask, num_padding_tokens
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import evaluation_batches, train_batches
from data_pipeline.stream.mixture import MixturePlan, open_mixture
from data_pipeline.tools.inspect import inspect, stats
from tests.support.corpus import make_texts, prepare_synthetic, write_jsonl
from tests.unit.data_pipeline.shards.test_shards import write

END = 1


def documents_of(lengths):
    """Documents of these lengths. Every token except their ends is unique."""
    first = np.cumsum([END + 1, *lengths]).tolist()
    return [np.array([*range(start, start + length - 1), END]) for start, length in zip(first, lengths, strict=False)]


def pack(documents, width, window_tokens):
    packer = BestFitPacker(width, "<u4", END, window_tokens)
    blocks = [samples.copy() for document in documents for samples in packer.add(document, np.array([len(document)]))]
    return np.concatenate([np.empty((0, width), dtype="<u4"), *blocks, *(block.copy() for block in packer.close())])


lengths_of_documents = st.lists(st.integers(1, 40), max_size=40)


@settings(max_examples=200, deadline=None)
@given(lengths=lengths_of_documents, width=st.integers(2, 17), window_tokens=st.integers(1, 300))
def test_each_token_is_in_one_sample_and_the_rest_is_padding(lengths, width, window_tokens):
    documents = documents_of(lengths)
    samples = pack(documents, width, window_tokens)
    padding = num_padding_tokens(samples, END)
    real = [sample[: width - filling] for sample, filling in zip(samples.tolist(), padding.tolist(), strict=True)]
    assert all(set(sample[width - n :]) <= {END} for sample, n in zip(samples.tolist(), padding.tolist(), strict=True))
    assert sum(padding) == samples.size - sum(lengths), "what is reported to be padding is what was filled in"
    assert sorted(token for sample in real for token in sample) == sorted(np.concatenate([[], *documents]).tolist())
    assert loss_mask(samples, END).sum() == sum(len(sample) - 1 for sample in real)
    # Any part of a document is contiguous, and only documents longer than a sample are cut.
    wanted = {tuple(document[i : i + width]) for document in documents for i in range(0, len(document), width)} - {
        (END,)
    }
    found = {tuple(sample[at : at + len(piece)]) for sample in real for piece in wanted for at in range(len(sample))}
    assert wanted <= found


@given(lengths=st.lists(st.integers(2, 30), max_size=60), width=st.integers(30, 60))
def test_no_two_samples_of_a_window_would_fit_in_one(lengths, width):
    filled = sorted(sum(lengths[piece] for piece in pieces) for pieces in best_fit(lengths, width))
    assert all(used <= width for used in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > width


def test_a_chunk_goes_where_it_leaves_the_least_room():
    assert best_fit([4, 7, 3, 6, 2], 10) == [[0, 3], [1, 2], [4]]
    assert best_fit([5, 8, 2, 5], 10) == [[0, 3], [1, 2]]


def test_samples_are_in_the_order_of_their_documents():
    samples = pack(documents_of([3, 9, 4, 6, 2, 8, 5]), 10, 1000)
    firsts = [min(token for token in sample if token != END) for sample in samples.tolist()]
    assert firsts == sorted(firsts)


def test_the_first_eod_of_a_trailing_run_is_not_padding():
    samples = pack(documents_of([9, 9, 3]), 8, 1000)  # the first two are cut just before their end token
    assert num_padding_tokens(samples, END).tolist() == [0, 3, 0]
    assert samples[1, :2].tolist() == [END] * 2 and samples[1, 5:].tolist() == [END] * 3
    alone = pack(documents_of([9, 9]), 8, 1000)
    assert len(alone) == 4 and num_padding_tokens(alone, END).tolist() == [0, 7, 0, 7]


@settings(max_examples=30, deadline=None)
@given(lengths=lengths_of_documents, seq_length=st.integers(1, 20), samples_per_member=st.integers(1, 70))
def test_shards_hold_the_samples_and_the_record_counts_them(tmp_path_factory, lengths, seq_length, samples_per_member):
    folder, documents = tmp_path_factory.mktemp("set"), documents_of(lengths)
    settings_ = {"dtype": "uint32", "samples_per_member": samples_per_member, "packing": "best_fit"}
    record = write(folder, documents, seq_length, **settings_).splits["train"]
    dataset = PackedDataset.open(folder, "train")
    samples = dataset.read(np.arange(dataset.num_samples))
    assert np.array_equal(samples, pack(documents, seq_length + 1, 1 << 22))
    assert samples.size == record.num_tokens + record.num_padding_tokens
    assert (record.num_tokens, record.num_tail_tokens) == (sum(lengths), 0)
    assert dataset.is_padded
    dataset.verify()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    source = write_jsonl(folder / "in.jsonl", make_texts(120))
    manifests = {
        name: prepare_synthetic(folder / name, [source], seq_length=64, num_workers=workers, packing=packing)
        for name, packing, workers in (("one", "best_fit", 1), ("two", "best_fit", 2), ("stream", "stream", 1))
    }
    return folder, manifests


def test_packing_again_gives_equal_bytes(prepared):
    folder, manifests = prepared
    assert manifests["one"].digest == manifests["two"].digest != manifests["stream"].digest
    for file in sorted((folder / "one").glob("*.tar")):
        assert file.read_bytes() == (folder / "two" / file.name).read_bytes()


def test_padding_is_reported(prepared):
    folder, manifests = prepared
    for name, packing in (("one", "best_fit"), ("stream", "stream")):
        reported, figures = summarize(manifests[name]), stats(folder / name)
        assert figures["packing"] == packing
        for split in ("train", "validation"):
            dataset = PackedDataset.open(folder / name, split)
            samples = dataset.read(np.arange(dataset.num_samples))
            padding = int(num_padding_tokens(samples, dataset.manifest.tokenizer.eod_id).sum())
            assert (padding > 0) == (packing == "best_fit")
            assert reported[f"{split} padding tokens"] == figures["splits"][split]["padding_tokens"] == padding


def test_inspected_samples_show_text_without_padding(prepared):
    folder, _ = prepared
    dataset = PackedDataset.open(folder / "one", "train")
    padding = num_padding_tokens(dataset.read(np.arange(dataset.num_samples)), dataset.manifest.tokenizer.eod_id)
    number = int(padding.argmax())
    (text,) = inspect(folder / "one", "train", number, 1)
    head, *lines = text.splitlines()
    assert head.startswith(f"--- train sample {number}: 65 tokens, ") and head.endswith(
        f", {padding[number]} of padding"
    )
    assert sum(line == "<|end of document|>" for line in lines) == int(head.split(" tokens, ")[1].split()[0])


def test_batches_mask_padding(prepared):
    folder, _ = prepared
    train, validation = (PackedDataset.open(folder / "one", split) for split in ("train", "validation"))
    batch = next(train_batches(train, seed=1, global_batch_size=train.num_samples, rank=0, size=1, position=0))
    end = train.manifest.tokenizer.eod_id
    assert np.array_equal(batch.mask.numpy(), loss_mask(batch.tokens.numpy(), end))
    assert not batch.mask.all()
    counted = sum(
        int(batch.mask.sum())
        for rank in range(2)
        for batch in evaluation_batches(validation, batch_size=3, rank=rank, size=2, max_samples=None)
    )
    assert counted == validation.record.num_tokens - validation.num_samples, "all but the first of each sample"


def test_a_mixture_may_combine_both_packing_modes(prepared):
    folder, _ = prepared
    dataset = open_mixture(
        MixturePlan({"one": 1.0, "stream": 1.0}, {}, []), {name: folder / name for name in ("one", "stream")}
    )
    batch = next(train_batches(dataset, seed=1, global_batch_size=600, rank=0, size=1, position=0))
    assert batch.mask.shape == (600, 64) and not batch.mask.all()
