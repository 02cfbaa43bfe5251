"""The shard format: a WebDataset tar whose members are .npy arrays of [samples, seq_length + 1] tokens."""

import struct

from xxhash import xxh3_64_intdigest

TAR_BLOCK = 512
NPY_HEADER_BYTES = 128  # fixed, so that the tokens of every member begin at the same offset
DTYPES = {"uint16": "<u2", "uint32": "<u4"}


def dtype_for(vocab_size: int) -> str:
    """The narrowest stored type that can hold every token ID."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def npy_header(shape: tuple[int, ...], descr: str) -> bytes:
    """A version 1.0 .npy header of exactly 128 bytes.

    numpy's own header is not used because its padding may change: equal data must give equal shards.
    """
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_HEADER_BYTES - 10)
    return head + text.encode("ascii").ljust(NPY_HEADER_BYTES - 11) + b"\n"


def member_key(split: str, number: int) -> str:
    """The name of a member without its `.npy`. Members are numbered through all shards of a split."""
    return f"{split}-{number:08d}"


def tar_member_bytes(content_bytes: int) -> int:
    """The size of a member in the tar: header block plus content, padded to whole blocks."""
    return TAR_BLOCK + -(-content_bytes // TAR_BLOCK) * TAR_BLOCK


def member_hash(content: bytes | memoryview) -> int:
    """The hash of a member's bytes in the index: XXH3 with 64 bits, as a signed integer."""
    value = xxh3_64_intdigest(content)
    return value - (1 << 64) if value >> 63 else value
