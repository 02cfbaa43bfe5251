"""Sizes of the blocks in which engine.cross_entropy=chunked computes logits."""

BLOCK_BYTES = 2**27
"""The logits of a block take this at most: columns enough for fast products, and little beside what a layer keeps."""
MULTIPLE = 128
"""Columns of a block are a multiple of this, as fast kernels of matrix products want."""


def block_columns(tokens: int, columns: int, width: int) -> int:
    """Columns of a block, of `columns` on this rank, for logits of `tokens` tokens with `width` bytes each."""
    most = max(BLOCK_BYTES // (tokens * width), MULTIPLE)
    blocks = -(-columns // most)
    even = -(-columns // max(blocks, 1))
    return max(min(-(-even // MULTIPLE) * MULTIPLE, columns), 1)
