"""A text that the tokenizer cannot encode is located, or dropped and counted."""

import string
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data_pipeline.errors import DataError, Unencodable
from data_pipeline.shards.manifest import Manifest
from data_pipeline.tokenizers.base import as_unencodable
from data_pipeline.tokenizers.loading import load_tokenizer
from tests.support.corpus import make_texts, prepare_synthetic, tokenizer_config, write_folder, write_jsonl
from tests.support.tokenizers import END

TEXTS = make_texts(60)
BAD = {7: "caf\u00e9 au lait", 31: "na\u00efve", 59: "\u65e5\u672c"}
MIXED = [BAD.get(number, text) for number, text in enumerate(TEXTS)]
GOOD = [text for number, text in enumerate(TEXTS) if number not in BAD]


def unknown_is_the_end(folder: Path) -> Path:
    """Characters outside ASCII become the token that ends documents."""
    vocabulary = {token: number for number, token in enumerate([END, *string.printable])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=END))
    made.decoder = decoders.Fuse()
    made.add_special_tokens([END])
    return save(made, folder)


def without_unknown(folder: Path) -> Path:
    """The package raises an exception on characters outside ASCII."""
    vocabulary = {token: number for number, token in enumerate([END, *string.printable])}
    made = tokenizers.Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[none]"))
    made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([END])
    return save(made, folder)


def save(made: tokenizers.Tokenizer, folder: Path) -> Path:
    made.save(str(folder / "mine.json"))
    return folder / "mine.json"


KINDS = [unknown_is_the_end, without_unknown]


@pytest.mark.parametrize("make", KINDS)
def test_every_error_of_a_package_becomes_unencodable(tmp_path, make):
    tokenizer = load_tokenizer(make(tmp_path))
    assert tokenizer.decode(tokenizer.encode("plain")) == "plain"
    with pytest.raises(Unencodable, match="cannot be encoded"):
        tokenizer.encode(BAD[7])


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_system_errors_do_not_become_unencodable(error):
    with pytest.raises(type(error)), as_unencodable("a package", "text"):
        raise error


@pytest.mark.parametrize("make", KINDS)
def test_the_error_names_the_document_and_the_tokenizer(tmp_path, make):
    source, path = write_jsonl(tmp_path / "in.jsonl", MIXED), make(tmp_path)
    with pytest.raises(DataError) as raised:
        prepare_synthetic(tmp_path / "set", [source], tokenizer=tokenizer_config(path=str(path)))
    assert str(raised.value).startswith(f"{source}:8: text")
    assert f"tokenizer.path={path}" in str(raised.value) and "data.encoding_errors=skip" in str(raised.value)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_unencodable_documents_are_skipped_and_counted(tmp_path, make, num_workers):
    good, mixed = write_folder(tmp_path / "good", GOOD), write_folder(tmp_path / "mixed", MIXED)
    given = tokenizer_config(path=str(make(tmp_path)))
    how = {"encoding_errors": "skip", "validation_min_bytes": 1, "tokenizer": given, "report": True}
    wanted = prepare_synthetic(tmp_path / "good set", [good], **how)
    found = prepare_synthetic(tmp_path / "mixed set", [mixed], num_workers=num_workers, **how)
    assert found.splits == wanted.splits and found.validation_share == wanted.validation_share
    assert found.corpus.dropped == {"not_encodable": len(BAD)}
    assert found.corpus.num_documents == wanted.corpus.num_documents == len(GOOD)
    assert found.corpus.num_bytes == wanted.corpus.num_bytes
    assert found.sources[0].documents == len(GOOD)
    assert "mixed/0031.txt" in (tmp_path / "mixed set" / "prepare_report.html").read_text()
    assert prepare_synthetic(tmp_path / "mixed set", [mixed], **how) == found == Manifest.load(tmp_path / "mixed set")
