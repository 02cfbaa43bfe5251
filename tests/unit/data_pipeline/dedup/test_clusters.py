import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import NearDedupConfig
from data_pipeline.dedup import clusters
from data_pipeline.dedup.clusters import exact_duplicates, near_duplicates
from data_pipeline.dedup.minhash import DEFAULT, EMPTY, signatures
from data_pipeline.document import content_hash
from data_pipeline.errors import DataError
from data_pipeline.prepare import duplicates
from tests.support.planted import documents, edited, jaccard, topics, vocabulary

SMALL = NearDedupConfig(shingle_words=3, bands=4, rows=2, similarity=0.5, seed=7)
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=8, max_size=8), max_size=25)


def signed(rows):
    return np.array(rows, np.uint32).reshape(-1, SMALL.permutations)


def one_after_another(rows):
    """The specification of `near_duplicates`, comparing every pair."""
    kept, originals = [], []
    for number, row in enumerate(rows):
        pairs = [np.equal(row, rows[other]) for other in kept]
        alike = [
            other
            for other, equal in zip(kept, pairs, strict=True)
            if equal.reshape(SMALL.bands, SMALL.rows).all(axis=1).any() and equal.mean() >= SMALL.similarity
        ]
        originals.append(alike[0] if alike else number)
        kept += [] if alike else [number]
    return originals


@given(ROWS)
def test_each_copy_belongs_to_its_first_similar_kept_document(rows):
    neighbours, clusters.MAX_DISTANCE = (
        clusters.MAX_DISTANCE,
        25,
    )  # large enough to compare every pair of so few documents
    try:
        assert near_duplicates(signed(rows), SMALL).tolist() == one_after_another(rows)
    finally:
        clusters.MAX_DISTANCE = neighbours


@given(ROWS, st.integers(1, 3), st.integers(1, 7))
def test_block_size_does_not_matter(rows, neighbours, block):
    before = clusters.MAX_DISTANCE, clusters.BLOCK
    clusters.MAX_DISTANCE = neighbours
    try:
        whole = near_duplicates(signed(rows), SMALL)
        clusters.BLOCK = block
        assert np.array_equal(near_duplicates(signed(rows), SMALL), whole)
    finally:
        clusters.MAX_DISTANCE, clusters.BLOCK = before


@given(ROWS, st.integers(1, 3))
def test_a_dropped_document_is_similar_to_the_kept_one(rows, neighbours):
    before, clusters.MAX_DISTANCE = clusters.MAX_DISTANCE, neighbours
    try:
        originals = near_duplicates(signed(rows), SMALL)
    finally:
        clusters.MAX_DISTANCE = before
    assert np.array_equal(originals[originals], originals)
    for number, original in enumerate(originals):
        assert original <= number
        assert np.equal(rows[number], rows[original]).mean() >= SMALL.similarity


def test_a_chain_of_versions_keeps_both_ends():
    words = [f"word{number}" for number in range(600)]
    versions = [" ".join(words[start : start + 200]) for start in range(0, 400, 20)]
    originals = near_duplicates(signatures(versions, DEFAULT), DEFAULT)
    kept = np.unique(originals)
    assert 4 <= len(kept) <= 10
    for number, original in enumerate(originals):
        assert jaccard(versions[number], versions[original], 3) > 0.3


def test_signatures_may_be_memory_mapped(tmp_path: Path):
    texts = documents(topics(), seed=1)[:50]
    rows = signatures(texts + texts, DEFAULT)
    np.save(tmp_path / "rows.npy", rows)
    on_disk = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(near_duplicates(on_disk, DEFAULT), near_duplicates(rows, DEFAULT))


def test_empty_documents_are_not_copies_of_each_other():
    rows = signatures(["", "text of some words", "", "  ", "text of some words"], DEFAULT)
    assert near_duplicates(rows, DEFAULT).tolist() == [0, 1, 2, 3, 1]
    assert near_duplicates(signatures([], DEFAULT), DEFAULT).tolist() == []


@pytest.mark.parametrize("seed", [1, 2])
def test_only_copies_with_few_edits_are_found(seed):
    texts = documents(topics(), seed)
    own = near_duplicates(signatures(texts, DEFAULT), DEFAULT)
    texts = [texts[number] for number in np.unique(own)]
    common, chance = vocabulary(texts), random.Random(seed)
    first = signatures(texts, DEFAULT)
    for share, least in ((0.0, 1.0), (0.05, 0.99), (0.1, 0.94)):
        copies = [edited(text, share, common, chance) if share else text for _ in range(2) for text in texts]
        found = 0
        for at in range(0, len(copies), len(texts)):
            both = texts + copies[at : at + len(texts)]
            rows = np.concatenate([first, signatures(both[len(texts) :], DEFAULT)])
            originals = near_duplicates(rows, DEFAULT)
            found += int((originals[len(texts) :] == np.arange(len(texts))).sum())
            left_out = np.flatnonzero(originals != np.arange(len(both)))
            assert min(jaccard(both[number], both[originals[number]], 3) for number in left_out) > 0.3
        assert found >= least * len(copies)


def bucket_of(size, chance):
    """Documents that share one band and nothing else."""
    rows = chance.integers(0, EMPTY, (size, DEFAULT.permutations), dtype=np.uint32)
    rows[:, : DEFAULT.rows] = 5
    return rows


def test_a_phrase_on_every_page_costs_linear_time():
    chance = np.random.default_rng(0)
    seconds = {}
    for size in (4_000, 40_000):
        rows = bucket_of(size, chance)
        began = time.process_time()
        assert np.array_equal(near_duplicates(rows, DEFAULT), np.arange(size))
        seconds[size] = time.process_time() - began
    assert seconds[40_000] < 30 * seconds[4_000]  # if quadratic: 100


def test_copies_among_many_pages_that_share_a_phrase_are_found():
    rows = bucket_of(2_000, np.random.default_rng(0))
    rows[1500] = rows[3]
    rows[1500, :40] += 1
    assert np.flatnonzero(near_duplicates(rows, DEFAULT) != np.arange(2_000)).tolist() == [1500]


@pytest.mark.parametrize("size", [1, 2, 17, 18, 20_000])
def test_a_page_repeated_many_times_is_kept_once(size):
    assert not near_duplicates(np.tile(signatures(["a page that is copied"], DEFAULT), (size, 1)), DEFAULT).any()


def test_signatures_of_another_configuration_are_refused():
    with pytest.raises(DataError, match=r"signatures have 8 numbers.*bands \* rows = 128"):
        near_duplicates(signatures(["a"], SMALL), DEFAULT)


HASHES = st.sampled_from([b"\0" * 16, b"\0" * 15 + b"a", b"a" + b"\0" * 15, content_hash("x")])


@given(st.lists(st.lists(HASHES)))
def test_exact_copies_have_the_same_hash(hashes):
    flat, reported = [one for some in hashes for one in some], []
    stored = [np.frombuffer(b"".join(some), "V16") for some in hashes]
    originals = exact_duplicates(stored, len(flat), Path(tempfile.gettempdir()), reported.append)
    assert originals.tolist() == [flat.index(one) for one in flat]
    assert reported == sorted(reported) and reported[-1] == 2 * 16 * len(flat)


@given(st.lists(st.integers(0, 30)))
def test_clusters_are_reported_by_size(values):
    numbers = {value: [at for at, one in enumerate(values) if one == value] for value in values}
    clusters = sorted((group for group in numbers.values() if len(group) > 1), key=lambda group: (-len(group), group))
    sizes, largest = duplicates._clusters(np.array([values.index(value) for value in values], np.int64))
    assert sizes == Counter(map(len, clusters))
    assert largest == [(group[0], group[-1], len(group)) for group in clusters[: duplicates.MAX_CLUSTERS]]
