"""Which elements of a whole tensor a rank's part consists of."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rows:
    """Pieces of equal length at equal distances in a flat row-major tensor: what tensor parallelism leaves of it.

    All of a tensor, or a cut of its rows, is one piece. A cut of its columns has a piece in each row.
    """

    first: int
    """Index of the first element."""
    count: int
    length: int
    """Elements of a piece."""
    stride: int
    """Elements from the start of a piece to the start of the next."""

    @property
    def numel(self) -> int:
        return self.count * self.length

    def cut(self, start: int, end: int) -> list["Rows"]:
        """Elements `start` to `end`, counted over all pieces: the end of a piece, whole ones, and the start of one."""
        top, left = divmod(start, self.length)
        bottom, right = divmod(end, self.length)
        if top == bottom:
            blocks = [self._block(top, 1, left, right)]
        else:
            whole = top + (left > 0)
            blocks = [
                self._block(top, 1, left, self.length if left else 0),
                self._block(whole, bottom - whole, 0, self.length),
                self._block(bottom, 1, 0, right),
            ]
        return [block for block in blocks if block.numel]

    def _block(self, piece: int, count: int, left: int, right: int) -> "Rows":
        return replace(self, first=self.first + piece * self.stride + left, count=count, length=right - left)
