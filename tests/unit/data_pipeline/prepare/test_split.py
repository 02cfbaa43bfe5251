import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.document import content_hash
from data_pipeline.prepare.split import LowestKeys, Selector
from tests.support.corpus import data_config, make_texts


def select(tmp_path, texts, sample_bytes=10_000, **changes):
    selector = Selector(data_config(tmp_path, ["x"], **changes), sample_bytes, seed=1)
    for text in texts:
        selector.add(content_hash(text), len(text.encode()))
    return selector


def held_out(selector, texts):
    split = selector.split()
    return {text for text in texts if split.holds_out(content_hash(text))}


@settings(max_examples=200)
@given(
    documents=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), max_size=40),
    limit=st.integers(0, 200),
    seed=st.integers(0, 99),
)
def test_lowest_keys_just_reach_the_limit_in_any_order(documents, limit, seed):
    shuffled = random.Random(seed).sample(documents, len(documents))
    found = []
    for order in (documents, shuffled):
        lowest = LowestKeys(limit)
        for key, size in order:
            lowest.add(key, size)
        found.append(dict(lowest.sizes()))
    totals = {key: sum(size for other, size in documents if other == key) for key, _ in documents}
    expected, reached = {}, 0
    for key in sorted(totals):
        if reached < limit:
            expected[key] = totals[key]
            reached += totals[key]
    assert found == [expected, expected]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("least", [0, 3_000, 10**9])
def test_the_split_holds_out_what_was_asked(tmp_path, fraction, least):
    texts = make_texts(300)
    selector = select(tmp_path, texts, validation_fraction=fraction, validation_min_bytes=least)
    chosen = held_out(selector, texts)
    total = sum(len(text.encode()) for text in texts)
    held_bytes = sum(len(text.encode()) for text in chosen)
    assert selector.split().held_out_bytes == held_bytes
    assert held_bytes >= min(least, total // 2)
    largest = max(len(text.encode()) for text in texts)
    assert held_bytes <= max(min(least, total // 2) + largest, 2 * fraction * total)


def test_split_and_sample_do_not_depend_on_order(tmp_path):
    texts = make_texts(200)
    texts += texts[:50]
    first = select(tmp_path, texts)
    second = select(tmp_path, random.Random(3).sample(texts, len(texts)))
    assert first.split() == second.split()
    assert first.sample(texts) == second.sample(reversed(texts))
    assert first.digest != second.digest, "the order of documents is part of the corpus"


def test_a_document_keeps_its_split_when_others_are_added(tmp_path):
    old, new = make_texts(300), make_texts(300, seed=1)
    fraction_only = {"validation_min_bytes": 0, "validation_fraction": 0.2}
    before = held_out(select(tmp_path, old, **fraction_only), old)
    after = held_out(select(tmp_path, new + old, **fraction_only), old)
    assert before == after and 30 < len(before) < 90


def test_sample_is_bounded_and_holds_nothing_held_out(tmp_path):
    texts = make_texts(300)
    selector = select(tmp_path, texts, sample_bytes=20_000)
    sample = selector.sample(texts)
    assert 15_000 < sum(len(text.encode()) for text in sample) <= 20_000
    assert not held_out(selector, texts) & set(sample)
    assert all(text in texts for text in sample[:-1]), "documents are sampled whole"
    assert any(text.startswith(sample[-1]) for text in texts)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("least", [0, 3_000, 60_000, 10**9])
@pytest.mark.parametrize("sample_bytes", [100, 20_000, 10**9])
def test_held_out_documents_take_no_room_in_the_sample(tmp_path, fraction, least, sample_bytes):
    texts = make_texts(300)
    selector = select(tmp_path, texts, sample_bytes, validation_fraction=fraction, validation_min_bytes=least)
    training = [text for text in texts if text not in held_out(selector, texts)]
    sampled = sum(len(text.encode()) for text in selector.sample(texts))
    assert sampled == min(sample_bytes, sum(len(text.encode()) for text in training))


def test_a_document_larger_than_the_sample_still_trains(tmp_path):
    text = "é" * 50_000
    sample = select(tmp_path, [text], sample_bytes=1001, validation_min_bytes=0).sample([text])
    assert sample == ["é" * 500]
