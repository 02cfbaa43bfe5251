"""README.md and the pages of docs/, as tests read them: blocks of commands, paragraphs, links, keys."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.run import RunConfig

ROOT = Path(__file__).resolve().parents[2]

# The order in which a reader meets them: a page may use what the pages before it made.
PAGES = (
    "README.md",
    "docs/getting-started.md",
    "docs/data.md",
    "docs/parallelism.md",
    "docs/planning.md",
    "docs/checkpoints-and-resume.md",
    "docs/performance.md",
    "docs/slurm.md",
    "docs/scaling.md",
    "docs/evaluation.md",
    "docs/generation.md",
    "docs/export.md",
    "docs/configuration.md",
    "docs/remote-data.md",
    "docs/multi-node-ssh.md",
    "docs/errors.md",
    "docs/glossary.md",
    "docs/design.md",
    "docs/log.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    line: int
    text: str
    not_run: str | None = None
    """Why the tests do not run it, from the comment above the block; None if they do."""
    exits: int = 0
    """The exit code that the page promises, from a comment like `<!-- exits 2, after: COMMAND -->`."""
    after: str = ""
    """A command that is run before, unseen by readers."""


def read_page(name: str, root: Path = ROOT) -> str:
    return (root / name).read_text(encoding="utf-8")


def blocks_of(markdown: str) -> list[Block]:
    lines = markdown.splitlines()
    blocks = []
    start = None
    for number, line in enumerate(lines):
        if start is None and line.strip() == "```bash":
            start = number
        elif start is not None and line.strip() == "```":
            above = next((text.strip() for text in reversed(lines[:start]) if text.strip()), "")
            blocks.append(_block(start + 1, "\n".join(lines[start + 1 : number]), above))
            start = None
    assert start is None, f"line {start}: block without an end"
    return blocks


def _block(line: int, text: str, above: str) -> Block:
    if reason := re.fullmatch(r"<!--\s*not run:(.*)-->", above):
        return Block(line, text, not_run=reason.group(1).strip())
    if promise := re.fullmatch(r"<!--\s*exits (\d+)(?:, after: (.*?))?\s*-->", above):
        return Block(line, text, exits=int(promise.group(1)), after=promise.group(2) or "")
    return Block(line, text)


def output_below(markdown: str, block: Block) -> str | None:
    """The block of text right after a block of commands: what it prints at its end."""
    rest = markdown.splitlines()[block.line + len(block.text.splitlines()) + 1 :]
    found = re.match(r"\s*```text\n(.*?)^```$", "\n".join(rest), re.DOTALL | re.MULTILINE)
    return found.group(1) if found else None


def with_output(markdown: str, block: Block, output: str) -> str:
    """The page with another text below a block of commands that has one."""
    lines = markdown.splitlines(keepends=True)
    end = block.line + len(block.text.splitlines()) + 1
    head, rest = "".join(lines[:end]), "".join(lines[end:])
    return head + re.sub(
        r"\A(\s*```text\n).*?^```$",
        lambda found: f"{found.group(1)}{output}```",
        rest,
        count=1,
        flags=re.DOTALL | re.MULTILINE,
    )


def prose_of(markdown: str) -> str:
    """The text without fenced blocks and comments."""
    return re.sub(r"(?ms)^```.*?^```$|<!--.*?-->", "", markdown)


def links_of(markdown: str) -> list[str]:
    """Targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(markdown))


def anchors_of(markdown: str) -> set[str]:
    """Anchors of the headings, as forges make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", prose_of(markdown))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def keys_of(markdown: str) -> set[str]:
    """Dotted keys in code, such as `engine.zero_stage`."""
    commands = [block.text for block in blocks_of(markdown) if not block.exits]
    code = " ".join([*re.findall(r"`([^`]+)`", prose_of(markdown)), *commands])
    sections = "|".join(field.name for field in dataclasses.fields(RunConfig))
    files = {"tokenizer.json", "tokenizer.model"}
    return set(re.findall(rf"(?<![\w./+-])(?:{sections})(?:\.[a-z_][a-z0-9_]*)+(?![\w./(*-])", code)) - files
