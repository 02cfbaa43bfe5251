"""Copies in the whole corpus, however it is split into files and tasks: all but the first are dropped, before the
split."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.dedup.minhash import DEFAULT
from tests.support.corpus import documents_of, make_texts, prepare_synthetic, write_jsonl
from tests.support.dirty import write_dirty
from tests.support.planted import edited, shingles

FEW_FILES = """
import pathlib, resource, sys
from data_pipeline.prepare import scan
from data_pipeline.sources.corpus import Corpus
from tests.support.corpus import data_config, prepare_synthetic
from tests.support.dirty import DROPPED, dirty_settings

folder, *inputs = map(pathlib.Path, sys.argv[1:])
scan.TASK_BYTES, limit = 3000, 48
assert len(Corpus(data_config(folder / "set", inputs)).tasks(scan.TASK_BYTES)) > limit
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
manifest = prepare_synthetic(folder / "set", inputs, **dirty_settings(folder))
assert manifest.corpus.dropped == DROPPED, manifest.corpus.dropped
"""


def test_near_copies_are_found_with_more_tasks_than_open_files(tmp_path):
    subprocess.run([sys.executable, "-c", FEW_FILES, tmp_path, *write_dirty(tmp_path)], cwd=Path.cwd(), check=True)


def straddling(folder):
    """The number of held-out documents that are similar to a training document."""
    train, held_out = ([shingles(text, 3) for text in documents_of(folder, split)] for split in ("train", "validation"))
    return sum(
        any(len(one & other) >= DEFAULT.similarity * len(one | other) for other in train) for one in held_out if one
    )


@pytest.mark.parametrize("copies_first", [False, True])
def test_near_copies_do_not_straddle_the_split(tmp_path, copies_first):
    texts = [text for text in make_texts(80) if text.count(" ") > 60]
    words, chance = sorted({word for text in texts for word in text.split()}), random.Random(1)
    sources = [
        write_jsonl(tmp_path / "texts.jsonl", texts),
        write_jsonl(tmp_path / "copies.jsonl", [edited(text, 0.03, words, chance) for text in texts]),
    ]
    inputs = sources[::-1] if copies_first else sources
    straddlers = {}
    for dedup in ("none", "near"):
        manifest = prepare_synthetic(tmp_path / dedup, inputs, dedup=dedup, validation_fraction=0.3)
        straddlers[dedup] = straddling(tmp_path / dedup)
    assert straddlers["none"] > 10 and straddlers["near"] == 0
    assert manifest.corpus.num_documents == len(texts)
    assert [source.documents for source in manifest.sources] == [len(texts), 0]
