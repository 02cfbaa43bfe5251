"""A run begins with the tokenizer of its data, and has it in its folder from then on."""

import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import DataError, MissingPackage
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.commands.training_run import train
from pretrain.config.errors import RunError
from pretrain.config.load import load_run_config
from pretrain.run.tokenizer import check_tokenizer, keep_tokenizer, tokenizer_of
from tests.support.corpus import make_texts, prepare_synthetic, tokenizer_config, write_jsonl
from tests.support.tokenizers import byte_level_bpe, write_tiktoken


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One with each kind of tokenizer."""
    place = tmp_path_factory.mktemp("tokenizers")
    source = write_jsonl(place / "in.jsonl", make_texts(40))
    (place / "mine.json").write_text(byte_level_bpe())
    given = {
        "sentencepiece": None,
        "huggingface": place / "mine.json",
        "tiktoken": write_tiktoken(place / "m.tiktoken"),
    }
    for kind, path in given.items():
        tokenizer = tokenizer_config(path=str(path) if path else None)
        prepare_synthetic(place / kind, [source], tokenizer=tokenizer)
    return {kind: place / kind for kind in given}


def of(folder: Path, run: Path, *overrides: str):
    return load_run_config([f"data.path={folder}", f"run.dir={run}", "model.seq_length=16", *overrides])


KINDS = ["sentencepiece", "huggingface", "tiktoken"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_keeps_the_tokenizer_of_its_data(datasets, tmp_path, kind):
    gone = of(tmp_path / "gone", tmp_path).data
    with pytest.raises(DataError, match="gone: not prepared"):
        tokenizer_of(tmp_path, gone)
    for other in (*KINDS, kind):
        keep_tokenizer(tmp_path, check_tokenizer(PackedDataset.open(datasets[other], "train")))
    there = tokenizer_of(tmp_path, of(datasets[kind], tmp_path / "no run").data)
    here = tokenizer_of(tmp_path, gone)
    assert here.fingerprint == there.fingerprint and here.eod_id == there.eod_id
    names = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert names == {path.name for path in datasets[kind].glob("tokenizer.*")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["junk", "another one", "missing"])
def test_a_damaged_tokenizer_is_refused_before_the_run(datasets, tmp_path, kind, damage):
    folder = shutil.copytree(datasets[kind], tmp_path / "set")
    (path,) = [path for path in folder.glob("tokenizer.*") if "settings" not in path.name]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"junk" if damage == "junk" else (datasets["tiktoken"].parent / "mine.json").read_bytes())
        if kind == "huggingface" and damage == "another one":
            path.write_text(byte_level_bpe(410))
    hint = "" if damage == "missing" else r"\n  hint: restore the file"
    with pytest.raises(DataError, match=rf"{path.name}: .*{hint}"):
        train(of(folder, tmp_path / "run", "engine.device=cpu", "tracking=off"))
    assert not (tmp_path / "run").exists()


def test_without_its_package_a_tokenizer_is_kept_unchecked(datasets, tmp_path, monkeypatch, caplog):
    def missing(*arguments):
        raise MissingPackage("tokenizer.json: needs the tokenizers package")

    monkeypatch.setattr(TokenizerFiles, "load", missing)
    keep_tokenizer(tmp_path, check_tokenizer(PackedDataset.open(datasets["huggingface"], "train")))
    assert "unchecked" in caplog.text and "needs the tokenizers package" in caplog.text
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_text() == byte_level_bpe()


def test_a_kept_tokenizer_that_is_damaged_is_named(datasets, tmp_path):
    keep_tokenizer(tmp_path, check_tokenizer(PackedDataset.open(datasets["sentencepiece"], "train")))
    data = of(datasets["sentencepiece"], tmp_path).data
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"tokenizer/tokenizer\.model: is not a SentencePiece model"):
        tokenizer_of(tmp_path, data)
    (tmp_path / "tokenizer" / "tokenizer.model").unlink()
    with pytest.raises(RunError, match=r"tokenizer: has no tokenizer\n  hint: remove this folder to use the"):
        tokenizer_of(tmp_path, data)
