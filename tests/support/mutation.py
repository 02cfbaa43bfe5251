"""A mutation: a piece of code is replaced by another, and named tests must fail."""

from dataclasses import dataclass

TEST_SECONDS = 120


@dataclass(frozen=True)
class Mutation:
    """A text in a file that is replaced by another."""

    name: str
    breaks: str
    """The consequence, in one sentence."""
    file: str
    old: str
    """Found exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Ids as in pytest. Each test must fail."""
    seconds: int = TEST_SECONDS
    """Timeout of each test: short if the mutation causes a deadlock."""

    def applied_to(self, text: str) -> str:
        """Raises ValueError if the list no longer matches the code."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} is {text.count(self.old)} times in {self.file}, not once")
        return text.replace(self.old, self.new)
