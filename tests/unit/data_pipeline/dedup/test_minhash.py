import dataclasses
import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import NearDedupConfig
from data_pipeline.dedup.minhash import DEFAULT, EMPTY, signatures
from data_pipeline.errors import DataError
from tests.support.planted import documents, edited, jaccard, topics, vocabulary

TEXTS = st.text(alphabet=st.sampled_from("ab, .\nÄß’日本กขค\U0001f600"), max_size=60)
SMALL = NearDedupConfig(shingle_words=3, bands=2, rows=2, similarity=0.5, seed=7)


def row(text, config=DEFAULT):
    return signatures([text], config)[0]


def same(first, second):
    return np.array_equal(row(first), row(second))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [EMPTY] * 4),
        ("One", [78559741, 1475831124, 2339085580, 721488385]),
        ("--- ***", [3148413055, 2599864726, 3426879126, 3850088439]),
        ("The quick brown fox, it jumps over the lazy dog.", [643342822, 2121106205, 686469379, 239907848]),
        ("Der Fuß des Flußes: ÄÖÜ ÉÀ — „so“, Привет, мир! Καλημέρα κόσμε.", [59315930, 1171111396, 3546586, 252119926]),
        ("吾輩は猫である。名前はまだ無い。", [34356871, 72533172, 311338476, 387721505]),
        ("ภาษาไทยไม่มีช่องว่าง", [271999823, 283008984, 821102597, 92361758]),
        ("word " * 70000 + "x" * 300000 + " end", [326170335, 207916577, 79048310, 1830650410]),
    ],
)
def test_signatures_never_change(text, expected):
    """They are stored, and compared across machines and versions."""
    assert row(text, SMALL).tolist() == expected


def test_every_byte_of_a_signature_is_what_it_was():
    texts = [f"{number} {chr(0x390 + number)} these are words number {number * number}" for number in range(300)]
    digest = hashlib.sha256(signatures(texts, DEFAULT).astype("<u4").tobytes()).hexdigest()
    assert digest == "fa997c7c1f31e5d08d368109f53312818292f764d89a5e0ec10b00ae1bf038f1"


def test_python_still_folds_case_the_same_way():
    """For all alphabets with case except the rarest. Unicode promises it."""
    ranges = [range(0x590), range(0x10A0, 0x1100), range(0x1E00, 0x2200), range(0xFF00, 0xFF5F)]
    folded = "".join(chr(code).casefold() for codes in ranges for code in codes)
    assert (
        hashlib.sha256(folded.encode()).hexdigest()
        == "376cb05e39807e91ba727de5170c19bb05ae7564e2037e7350b677c06056f96e"
    )


@given(st.lists(TEXTS, max_size=12), st.integers(0, 12))
def test_a_signature_depends_only_on_its_text(texts, cut):
    cut = min(cut, len(texts))
    alone = [row(text, SMALL) for text in texts]
    assert np.array_equal(signatures(texts, SMALL), np.array(alone, np.uint32).reshape(-1, 4))
    parts = np.concatenate([signatures(texts[:cut], SMALL), signatures(texts[cut:], SMALL)])
    assert np.array_equal(parts, signatures(texts, SMALL))


def test_texts_in_one_call_do_not_affect_each_other():
    chance = random.Random(0)
    texts = [
        " ".join(str(chance.randrange(50)) for _ in range(size)) for size in (0, 1, 2, 3, 4, 90000, 0, 5, 200000, 1)
    ]
    assert np.array_equal(signatures(texts, DEFAULT), [row(text) for text in texts])


@given(st.lists(st.sampled_from(["one", "two", "Three", "четыре", "fünf", "七"]), max_size=30), st.integers(1, 5))
def test_a_signature_is_the_minimum_over_its_shingles(chosen, size):
    """This is why it estimates the Jaccard similarity."""
    config = dataclasses.replace(SMALL, shingle_words=size)
    runs = [" ".join(chosen[at : at + size]) for at in range(max(1, len(chosen) - size + 1))]
    assert np.array_equal(row(" ".join(chosen), config), signatures(runs, config).min(axis=0))


def test_case_punctuation_and_blanks_do_not_matter():
    assert same("The quick, brown FOX (jumps)!", "the\tquick brown fox\n jumps")
    assert same("Привет, МИР — да", "привет мир да")
    assert same("don’t “do” that", "don't 'do' that")
    assert not same("the quick brown fox", "quick the brown fox")


def test_fewer_words_than_a_shingle_are_one_shingle():
    assert same("one two", "One, two!")
    assert (row("one two") != row("one")).all()
    assert (row("one two") != row("two one")).all()
    assert same("***  ---", "*** ---")
    assert (row("***") != row("---")).all()


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_an_empty_text_has_no_shingles(blank):
    assert (row(blank) == EMPTY).all()


@pytest.mark.parametrize(
    "text", ["吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ", "ภาษาไทยเขียนติดกันโดยไม่มีช่องว่างระหว่างคำ"]
)
def test_text_without_blanks_is_compared_by_characters(text):
    changed = text[:10] + text[11:]
    assert 0.45 < np.mean(row(text) == row(changed)) < 0.95


def test_signatures_estimate_the_similarity():
    texts = documents(topics(), seed=1)
    chance = random.Random(2)
    common = vocabulary(texts)
    copies = [edited(text, share, common, chance) for share in (0.02, 0.05, 0.1, 0.2) for text in texts]
    truth = np.array([jaccard(first, second, 3) for first, second in zip(texts * 4, copies, strict=True)])
    estimate = (np.tile(signatures(texts, DEFAULT), (4, 1)) == signatures(copies, DEFAULT)).mean(axis=1)
    deviations = (estimate - truth) / np.sqrt(truth * (1 - truth) / DEFAULT.permutations)
    assert abs(deviations.mean()) < 0.1
    assert 0.9 < deviations.std() < 1.1, "as of independent permutations"


def test_seeds_give_unrelated_signatures():
    text = documents(topics(), seed=1)[0]
    assert not (row(text) == row(text, dataclasses.replace(DEFAULT, seed=1))).any()


@pytest.mark.parametrize(
    ("key", "value"),
    [("shingle_words", 0), ("bands", 0), ("rows", -1), ("similarity", 0.0), ("similarity", 1.5)],
)
def test_impossible_settings_are_named(key, value):
    with pytest.raises(DataError, match=rf"^data\.near_dedup\.{key}={value}: must be"):
        dataclasses.replace(DEFAULT, **{key: value})
