"""A ladder's folder keeps the numbers of its cells, and is refused to another ladder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards.folder import LocalFolder
from pretrain.config.load import load_run_config
from pretrain.scaling.ladder.cells import build_cells
from pretrain.scaling.ladder.folder import find_ladder, folder_of, joined, read_ladder, write_ladder
from pretrain.scaling.ladder.same_data import check_same_data
from pretrain.scaling.ladder.spec import read_spec
from tests.unit.scaling.ladder.files import SIZES, write_file


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_new_cells_come_after_those_that_are_there(tmp_path: Path) -> None:
    first = build_cells(read_spec(write_file(tmp_path)))
    write_ladder(folder_of("small"), joined(folder_of("small"), first))
    assert read_ladder(folder_of("small")) == first
    more = build_cells(read_spec(write_file(tmp_path, sizes={**SIZES, "layers": [3, 1, 2]})))
    both = joined(folder_of("small"), more)
    assert both[: len(first)] == first and {cell.size for cell in both[len(first) :]} == {"d3w96"}
    for given in ("small", "ladders/small", "ladder.yaml"):
        assert find_ladder(given) == folder_of("small")


def test_the_folder_of_another_ladder_is_refused(tmp_path: Path) -> None:
    write_ladder(folder_of("small"), build_cells(read_spec(write_file(tmp_path))))
    other = build_cells(read_spec(write_file(tmp_path)), ["optim.beta1=0.8"])
    with pytest.raises(UserError, match=r"is the folder of another ladder: its cell d1w32-0\.1x has") as caught:
        joined(folder_of("small"), other)
    assert "optim.beta1=0.8" in str(caught.value)
    none_of_it = build_cells(read_spec(write_file(tmp_path, sizes={**SIZES, "layers": [4]})))
    with pytest.raises(UserError, match="it has no cell of this file"):
        joined(folder_of("small"), none_of_it)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ladders/small/runs").mkdir(parents=True)
    cells = build_cells(read_spec(write_file(tmp_path)))
    with pytest.raises(UserError, match="exists and is not the folder of a ladder"):
        joined(folder_of("small"), cells)
    with pytest.raises(UserError, match="this ladder was not started"):
        find_ladder("ladder.yaml")
    with pytest.raises(UserError, match="not the folder of a ladder"):
        find_ladder("ladders")
    (tmp_path / "ladders/small/ladder.json").write_text("{")
    with pytest.raises(UserError, match="not a valid record"):
        read_ladder(folder_of("small"))


@pytest.mark.parametrize(
    ("key", "words"),
    [("tokenizer_fingerprint", "mixed tokenizers: d1w32-0.1x has abc"), ("corpus_digest", "mixed validation sets: ")],
)
def test_mixed_data_is_refused(key: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = build_cells(read_spec(write_file(tmp_path)))
    same = {"tokenizer_fingerprint": "abc", "corpus_digest": "def"}
    for cell, facts in zip(cells, (same, {**same, key: "other"}), strict=False):
        Path(cell.run_dir).mkdir(parents=True)
        (Path(cell.run_dir) / "description.json").write_text(json.dumps({"data": facts}))
    check_same_data(cells[:1], [])
    with pytest.raises(UserError) as caught:
        check_same_data(cells, [])
    assert words in str(caught.value) and "d1w32-0.4x has other" in str(caught.value)
    # The dataset that the next runs would read.
    manifest = SimpleNamespace(
        corpus=SimpleNamespace(digest=same["corpus_digest"]),
        tokenizer=SimpleNamespace(fingerprint=same["tokenizer_fingerprint"]),
    )
    monkeypatch.setattr(LocalFolder, "manifest", lambda self: manifest)
    check_same_data(cells[:1], [load_run_config([])])
    with pytest.raises(UserError, match=r"the dataset in data.files has"):
        check_same_data(cells[1:], [load_run_config([])])
