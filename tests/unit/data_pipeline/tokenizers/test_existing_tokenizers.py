"""Tokenizers of other kinds give their own IDs, treat text as text, and are the same wherever they are loaded."""

import json
import logging
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, processors

from data_pipeline.errors import DataError
from data_pipeline.tokenizers import encodings
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.tiktoken_file import TiktokenTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from data_pipeline.tools.inspect import inspect, verify
from tests.support.corpus import make_texts, prepare_synthetic, tokenizer_config, write_jsonl
from tests.support.tokenizers import END, byte_level_bpe, changed, tiktoken_ranks, write_tiktoken

KINDS = ["huggingface", "tiktoken"]
REAL_TEXT = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()
AWKWARD = ["", " ", "a\r\n\t\x00\u2581 é\u0301 日本 🏳️‍🌈\U0010ffff", END, f"x{END}{END} y", "<|fim_prefix|></s><s><unk>"]


def write(kind: str, folder: Path) -> Path:
    if kind == "tiktoken":
        return write_tiktoken(folder / "mine.tiktoken")
    (folder / "mine.json").write_text(byte_level_bpe())
    return folder / "mine.json"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def loaded(files: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: load_tokenizer(path) for kind, path in files.items()}


def huggingface(record: str, folder: Path, eod: str | None = None) -> Tokenizer:
    (folder / "tokenizer.json").write_text(record)
    return load_tokenizer(folder / "tokenizer.json", eod=eod)


def test_ids_equal_those_of_the_package(loaded: dict[str, Tokenizer]) -> None:
    own = tokenizers.Tokenizer.from_str(byte_level_bpe())
    assert loaded["huggingface"].encode(REAL_TEXT) == own.encode(REAL_TEXT).ids
    ranks = tiktoken_ranks(byte_level_bpe())
    encoding = tiktoken.Encoding(
        "own", pat_str=encodings.GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END: len(ranks)}
    )
    assert loaded["tiktoken"].encode(REAL_TEXT) == encoding.encode_ordinary(REAL_TEXT)
    # The same vocabulary; the special token comes first in one file and last in the other.
    assert [index + 1 for index in loaded["tiktoken"].encode(REAL_TEXT)] == loaded["huggingface"].encode(REAL_TEXT)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from([*AWKWARD, "<|endof", "text|>"])).map("".join)))
def test_any_text_round_trips_without_special_tokens(loaded: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = loaded[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod_id not in ids and all(0 <= index < tokenizer.vocab_size for index in ids)
    assert tokenizer.decode([tokenizer.eod_id, *ids, tokenizer.eod_id]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_ids(loaded: dict[str, Tokenizer], kind: str) -> None:
    texts = [*make_texts(30, seed=5), *AWKWARD, REAL_TEXT]
    one, three = (loaded[kind].encode_batch(texts, num_threads=threads) for threads in (1, 3))
    assert [ids.tolist() for ids in one] == [ids.tolist() for ids in three]
    assert [ids.tolist() for ids in one] == [loaded[kind].encode(text) for text in texts]
    assert all(ids.dtype == "int32" for ids in one)


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_are_refused(loaded: dict[str, Tokenizer], kind: str) -> None:
    with pytest.raises(DataError, match=r"character 2 is a lone surrogate"):
        loaded[kind].encode("ab\ud800")
    ids = loaded[kind].encode("日本")
    assert loaded[kind].decode(ids[:-1]).startswith("日") and "\ufffd" in loaded[kind].decode(ids[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_is_prepared_and_decoded_again(
    files: dict[str, Path], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{text}literal {END} here\n" for text in make_texts(40)]
    source = write_jsonl(tmp_path / "texts.jsonl", texts)
    given_tokenizer = tokenizer_config(path=str(files[kind]))
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "tokenizer.model").write_bytes(b"of an interrupted run that trained one")
    manifest = prepare_synthetic(tmp_path / "set", [source], tokenizer=given_tokenizer)
    assert manifest.tokenizer.kind == kind and manifest.splits["train"].num_documents < 40
    stored = tmp_path / "set" / manifest.tokenizer.file
    assert stored.read_bytes() == files[kind].read_bytes()
    assert load_tokenizer(stored, manifest.tokenizer.fingerprint).eod_id == manifest.tokenizer.eod_id
    assert verify(tmp_path / "set") == [] and not (tmp_path / "set" / "tokenizer.model").exists()
    (shown,) = inspect(tmp_path / "set", "train", 0, 1)
    assert any(text.startswith(shown.split("\n", 1)[1].split("\n<|end of")[0][:20]) for text in texts)
    assert "changes text" not in caplog.text
    # The file beside the shards is enough to make another dataset with the same tokens.
    again = prepare_synthetic(tmp_path / "again", [source], tokenizer=tokenizer_config(path=str(stored)))
    assert again.digest == manifest.digest


def test_the_kind_is_recognized_by_content_not_by_name(files: dict[str, Path], tmp_path: Path) -> None:
    for kind, cls in (("huggingface", HuggingFaceTokenizer), ("tiktoken", TiktokenTokenizer)):
        path = tmp_path / f"{kind}.model"
        path.write_bytes(files[kind].read_bytes())
        if kind == "tiktoken":
            beside = files[kind].with_name("mine.settings.json")
            path.with_name(f"{kind}.settings.json").write_bytes(beside.read_bytes())
        assert isinstance(load_tokenizer(path), cls)
    (tmp_path / "sp.json").write_bytes(train_tokenizer(lambda: ["abc abc"], tokenizer_config(vocab_size=262)))
    assert isinstance(load_tokenizer(tmp_path / "sp.json"), SentencePieceTokenizer)


def test_a_lossy_tokenizer_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lower = tokenizers.Tokenizer.from_str(byte_level_bpe())
    lower.normalizer = normalizers.Lowercase()
    (tmp_path / "lower.json").write_text(lower.to_str())
    source = write_jsonl(tmp_path / "texts.jsonl", [f"Title\n{text}" for text in make_texts(40)])
    prepare_synthetic(tmp_path / "set", [source], tokenizer=tokenizer_config(path=str(tmp_path / "lower.json")))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        "lower.json: this tokenizer changes text: " in warning
        and "'Title\\n# d" in warning
        and "'title\\n# d" in warning
    )


def test_truncation_padding_and_dropout_are_switched_off(tmp_path: Path) -> None:
    plain = tokenizers.Tokenizer.from_str(byte_level_bpe())
    other = tokenizers.Tokenizer.from_str(byte_level_bpe())
    other.enable_truncation(5)
    other.enable_padding(length=50)
    other.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    model = json.loads(byte_level_bpe())["model"] | {"dropout": 0.5}
    tokenizer = huggingface(changed(other.to_str(), model=model), tmp_path)
    assert tokenizer.encode(REAL_TEXT) == plain.encode(REAL_TEXT).ids
    assert tokenizer.fingerprint == HuggingFaceTokenizer(byte_level_bpe().encode()).fingerprint


def test_an_end_token_in_the_vocabulary_is_spelled_out_in_text(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("</s>", -1.0), *[(letter, -5.0) for letter in "</s>abc "]]
    unigram = tokenizers.Tokenizer(models.Unigram([*dict.fromkeys(pieces)], unk_id=0, byte_fallback=False))
    assert 1 in unigram.encode("a</s>b").ids
    tokenizer = huggingface(unigram.to_str(), tmp_path)
    ids = tokenizer.encode("a</s></s>b</s>")
    assert tokenizer.eod_id == 1 and 1 not in ids
    assert "".join(pieces[index][0] for index in ids) == "a</s></s>b</s>"
    one = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    with pytest.raises(DataError, match=r"turns 'a' into its special token 1"):
        huggingface(one.to_str(), tmp_path, eod="a").encode("bab")


def test_the_vocabulary_covers_added_tokens_and_holes(tmp_path: Path) -> None:
    record = json.loads(byte_level_bpe())
    token = record["added_tokens"][0]
    added = [token, token | {"id": 900, "content": "<|extra|>"}]
    assert huggingface(json.dumps(record | {"added_tokens": added}), tmp_path).vocab_size in (401, 901)
    special = {END: 450, "<|pad|>": 460}
    tokenizer = load_tokenizer(write_tiktoken(tmp_path / "holes.tiktoken", special=special))
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (461, 450)
    assert tokenizer.decode([455, 460, 450, *tokenizer.encode("x")]) == "x"


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>"])
def test_usual_end_of_document_tokens_are_found(tmp_path: Path, name: str) -> None:
    tokenizer = huggingface(byte_level_bpe(special=("<pad>", "<|im_start|>", name)), tmp_path)
    assert tokenizer.eod_id == 2 and tokenizer.settings.eod == name


def test_another_end_of_document_token_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(byte_level_bpe(special=(END, "<|next|>")))
    source = write_jsonl(tmp_path / "texts.jsonl", make_texts(40))
    chosen = tokenizer_config(path=str(tmp_path / "t.json"), eod="<|next|>")
    manifest = prepare_synthetic(tmp_path / "set", [source], tokenizer=chosen)
    assert manifest.tokenizer.eod_id == 1 and verify(tmp_path / "set") == []
    with pytest.raises(DataError, match=r"fingerprint of tokenizer.path was"):
        prepare_synthetic(tmp_path / "set", [source], tokenizer=tokenizer_config(path=str(tmp_path / "t.json")))
    model = train_tokenizer(lambda: ["abc abc"], tokenizer_config(vocab_size=262))
    (tmp_path / "sp.model").write_bytes(model)
    assert load_tokenizer(tmp_path / "sp.model", eod="</s>").eod_id == 1
    with pytest.raises(DataError, match=r"tokenizer.eod=<x>: only applies to an existing tokenizer"):
        prepare_synthetic(tmp_path / "x", [source], tokenizer=tokenizer_config(eod="<x>"))
    with pytest.raises(
        DataError, match=r"has no special token '<x>' to end documents with; it has </s>\n  hint: give one"
    ):
        load_tokenizer(tmp_path / "sp.model", eod="<x>")


def test_a_missing_end_of_document_lists_the_special_tokens(tmp_path: Path) -> None:
    record = byte_level_bpe(special=("<pad>", "<|im_start|>"))
    with pytest.raises(
        DataError, match=r"no special token with a usual name .*; it has <pad>, <\|im_start\|>\n  hint: name one"
    ):
        huggingface(record, tmp_path)
    with pytest.raises(DataError, match=r"no special token '<x>' to end documents with; it has <pad>"):
        huggingface(record, tmp_path, eod="<x>")
    with pytest.raises(
        DataError, match=r"it has none at all\n  hint: give its id as special_tokens in .*mine.settings.json, as"
    ):
        load_tokenizer(write_tiktoken(tmp_path / "mine.tiktoken", special={}))


def test_fingerprints_cover_exactly_what_decides_ids(files: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads(byte_level_bpe())
    first = huggingface(json.dumps(record), tmp_path).fingerprint
    merges = [" ".join(pair) for pair in record["model"]["merges"]]  # as older versions write them
    older = record | {"model": record["model"] | {"merges": merges}, "decoder": None}
    del older["model"]["ignore_merges"], older["model"]["dropout"]
    assert huggingface(json.dumps(dict(reversed(older.items())), indent=3), tmp_path).fingerprint == first
    swapped = record["model"]["merges"][::-1]
    for other in (
        record | {"model": record["model"] | {"merges": swapped}},
        record | {"normalizer": {"type": "NFC"}},
        record | {"pre_tokenizer": record["pre_tokenizer"] | {"add_prefix_space": True}},
    ):
        assert huggingface(json.dumps(other), tmp_path).fingerprint != first
    prints = {load_tokenizer(files["tiktoken"]).fingerprint}
    for number, changes in enumerate(({"pattern": "cl100k_base"}, {"special": {END: 500}}, {"special": {"</s>": 399}})):
        prints.add(load_tokenizer(write_tiktoken(tmp_path / f"{number}.tiktoken", **changes)).fingerprint)
    assert len(prints) == 3  # the name of the end token does not matter


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named_with_its_extra(files: dict[str, Path], kind: str) -> None:
    package = "tokenizers" if kind == "huggingface" else "tiktoken"
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pathlib import Path; from data_pipeline.tokenizers.loading import load_tokenizer\n"
        f"load_tokenizer(Path({str(files[kind])!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        f"needs the {package} package, which is not installed\n  hint: pip install 'pretrain[tokenizers]'"
        in done.stderr
    )


def test_a_lossy_sentencepiece_model_still_ends_documents(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(30)), model_prefix=str(tmp_path / "m"), vocab_size=300, minloglevel=3
    )
    tokenizer = load_tokenizer(tmp_path / "m.model")
    assert tokenizer.kind == "sentencepiece" and tokenizer.eod_id not in tokenizer.encode("a </s> b")


def test_published_encodings_match_the_installed_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken_ext.openai_public as published

    def load(url: str, expected_hash: str) -> str:
        return expected_hash

    monkeypatch.setattr(published, "load_tiktoken_bpe", load)
    ranks = tiktoken_ranks(byte_level_bpe())
    for name, ours in encodings.ENCODINGS.items():
        theirs = getattr(published, name)()
        assert (theirs["mergeable_ranks"], theirs["special_tokens"]) == (ours.sha256, ours.special_tokens)
        # Its spelling changes between versions, so compare what it matches.
        both = [
            tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
            for pattern in (ours.pattern, theirs["pat_str"])
        ]
        for text in (
            REAL_TEXT,
            *AWKWARD,
            "We'LL don't  \n\n \t x1234567 \r\n /// ǅa ÉCOLE'S aʰB\u0301c \u00a0\u3000\n",
        ):
            assert both[0].encode_ordinary(text) == both[1].encode_ordinary(text)
