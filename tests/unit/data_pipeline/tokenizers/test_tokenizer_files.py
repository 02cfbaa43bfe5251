"""Published encodings, and invalid tokenizer files and settings."""

import hashlib
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.tokenizers import encodings
from data_pipeline.tokenizers.loading import load_tokenizer
from tests.support.tokenizers import END, byte_level_bpe, tiktoken_bytes, tiktoken_ranks, write_tiktoken


def test_a_published_encoding_needs_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiktoken_bytes(tiktoken_ranks(byte_level_bpe()))
    known = encodings.TiktokenEncoding(hashlib.sha256(content).hexdigest(), encodings.CL100K_PATTERN, {END: 777})
    monkeypatch.setitem(encodings.ENCODINGS, "cl100k_base", known)
    (tmp_path / "any.name").write_bytes(content)
    tokenizer = load_tokenizer(tmp_path / "any.name")
    assert (tokenizer.eod_id, tokenizer.settings.pattern) == (777, encodings.CL100K_PATTERN)
    (tmp_path / "cl100k_base.tiktoken").write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(
        DataError, match=r"a published encoding of tiktoken \(it has the name of cl100k_base, but its content is"
    ):
        load_tokenizer(tmp_path / "cl100k_base.tiktoken")


def test_long_runs_of_blanks_are_split_for_tiktoken(tmp_path: Path) -> None:
    for pattern in ("gpt2", "o200k_base", "cl100k_base"):
        tokenizer = load_tokenizer(write_tiktoken(tmp_path / "t.tiktoken", pattern=pattern))
        text = f"a{' ' * 300_000}b{chr(10) * 100_000}{' ' * 19_990}"
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"is not complete JSON"),
        (b'{"add_bos_token": true}', r'is JSON, but not a Hugging Face tokenizer.json \(it has no "model"\)'),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
            r"is not a tokenizer.json .*out of vocabul",
        ),
        (b"IQ== 0\nIg== 1\n", r"has no token for byte 0; it is truncated"),
        (b"IQ== 0\nIg==\n", r"line 2: is not a base64 token and its rank: 'Ig=='"),
        (b"IQ== 0\n\xff\x00\x80\n", r"line 2: is not a base64 token and its rank: it is not even text"),
        (b"IQ== 0\nI!== 1\n", r"line 2: is not a base64 token"),
        (b"IQ== 0\nIQ== 1\n", r"line 2: the token b'!' is empty, is listed twice"),
        (b"IQ== 0\nIg== 0\n", r"two tokens have the same rank"),
        (b"junk", r"is not a SentencePiece model \(nor a Hugging Face"),
        (b"", r"is not a SentencePiece model"),
    ],
)
def test_files_that_are_not_tokenizers_are_refused_with_a_reason(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match=rf"{tmp_path}/t.*{message}"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize(
    ("settings_text", "message"),
    [
        ("{", "cannot be read"),
        ('{"patern": "gpt2"}', "must be a JSON object with no other keys than eod, pattern, special_tokens"),
        ('{"pattern": 5}', "pattern is 5, but must be text"),
        ('{"pattern": "("}', r"its pattern '\(' is not a regular expression"),
        ('{"special_tokens": ["<|endoftext|>"]}', "special_tokens must give IDs by name"),
        ('{"pattern": "gpt2", "special_tokens": {"</s>": 5}}', "'</s>' has the ID 5, which another token also has"),
    ],
)
def test_settings_beside_a_tokenizer_are_checked(tmp_path: Path, settings_text: str, message: str) -> None:
    path = write_tiktoken(tmp_path / "t.tiktoken")
    settings_text = settings_text.replace('"("', f'"(", "special_tokens": {{"{END}": 399}}')
    (tmp_path / "t.settings.json").write_text(settings_text)
    with pytest.raises(DataError, match=message):
        load_tokenizer(path)
