"""Compressed files are read completely, or are an error."""

import gzip
import tracemalloc
import zlib

import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources.compression import ByteReader
from tests.support.corpus import make_texts
from tests.unit.data_pipeline.sources.reading_texts import read, texts


@pytest.mark.parametrize("suffix", [".gz", ".GZIP", ".zst", ".zstd"])
def test_each_compression_suffix_is_recognized(tmp_path, suffix):
    pack = gzip.compress if "g" in suffix.lower() else zstandard.ZstdCompressor().compress
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(make_texts(6)[0].encode()))
    assert texts(read(tmp_path / "out", tmp_path / f"a.txt{suffix}")[1]) == [make_texts(6)[0]]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("errors", ["fail", "skip"])
def test_truncated_or_damaged_compressed_files_are_errors(tmp_path, suffix, errors):
    plain = "\n".join(make_texts(200)).encode()
    whole = gzip.compress(plain) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    path = tmp_path / f"t.txt{suffix}"
    for content, what in [
        (whole[: len(whole) // 2], "truncated"),
        (whole[:-3], "truncated"),
        (b"", "truncated"),
        (whole[:-8] + bytes(8), "damaged"),
        (b"no compression at all", "damaged"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"t.txt{suffix}: compressed file is {what}"):
            read(tmp_path / "out", path, encoding_errors=errors)


def test_nul_bytes_are_padding_only_after_a_gzip_member(tmp_path):
    member, padding = gzip.compress(b"text"), bytes(300_000)
    path = tmp_path / "t.txt.gz"
    path.write_bytes(member + padding + member + padding)
    assert [item.text for item in read(tmp_path / "out", path)[1]] == ["texttext"]
    for content in (padding, padding + member):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"t.txt.gz: compressed file is damaged"):
            read(tmp_path / "out", path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_decompression_takes_bounded_memory(tmp_path, suffix):
    packer = zlib.compressobj(wbits=31) if suffix == ".gz" else zstandard.ZstdCompressor().compressobj()
    path = tmp_path / f"t.txt{suffix}"
    path.write_bytes(b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush())
    with path.open("rb") as raw:
        reader = ByteReader(raw, path.name)
        tracemalloc.start()
        try:
            assert reader.read(1000) == bytes(1000)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most < 64 << 20, f"{most / 1e6:.0f} MB"
        assert sum(iter(lambda: len(reader.read(1 << 20)), 0)) == (256 << 20) - 1000


def test_zstd_frames_of_any_size_are_read_one_after_another(tmp_path):
    parts = [bytes([number]) * size for number, size in enumerate([0, 1, 1023, 5000, 0, 300_000, 7] * 20)]
    path = tmp_path / "t.txt.zst"
    path.write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, parts)))
    with path.open("rb") as raw:
        reader = ByteReader(raw, path.name)
        assert b"".join(iter(lambda: reader.read(10_000), b"")) == b"".join(parts)
