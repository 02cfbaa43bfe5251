"""A count of the bytes that a pass holds, operation by operation."""


class Meter:
    """Bytes held now, and the most at one time since the meter was made or `begin` was called."""

    __slots__ = ("now", "peak")

    def __init__(self, now: int = 0) -> None:
        self.now = self.peak = now

    def add(self, *changes: int) -> None:
        """Allocate (above 0) and free (below 0), in this order."""
        for change in changes:
            self.now += change
            if self.now > self.peak:
                self.peak = self.now

    def begin(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now
