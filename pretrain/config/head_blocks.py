"""Sizes of the parts in which a cross-entropy is computed."""

ROWS_ELEMENTS = 2**24
"""Logits for which in_place and chunked compute in fp32 at a time, unless they are compiled: 64 MiB."""
BLOCK_BYTES = 2**27
"""The logits of a block of engine.cross_entropy=chunked take this at most: it has columns enough for fast products,
and is small beside what layers keep."""
MULTIPLE = 128
"""Columns of a block are a multiple of this, as fast kernels of matrix products want."""


def block_columns(tokens: int, columns: int, width: int) -> int:
    """Columns of a block, of `columns` on this rank, for logits of `tokens` tokens with `width` bytes each."""
    most = max(BLOCK_BYTES // (tokens * width), MULTIPLE)
    blocks = -(-columns // most)
    even = -(-columns // max(blocks, 1))
    return max(min(-(-even // MULTIPLE) * MULTIPLE, columns), 1)
