"""What README.md tells a user to type works, in the order told, in a clone where nothing was run before."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fresh_clone import ROOT, borrow_environment, copy_repository, offline_environment

# The first run is minutes long by design; here it learns from one text for a few steps.
QUICKSTART = "bash launch/quickstart.sh"
SMALL = (
    "'data.inputs=[my.txt]' data.validation_min_bytes=4096 tokenizer=bpe_4k tokenizer.vocab_size=400 train.max_steps=4"
)
# This test is one of its tests.
TEST_SUITE = "bash launch/test.sh"


@dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    line: int
    text: str
    not_run: str | None
    """Why it is not run here: the text of the comment above it; None: it is run."""


def blocks_of(markdown: str) -> list[Block]:
    lines = markdown.splitlines()
    blocks = []
    start = None
    for number, line in enumerate(lines):
        if start is None and line.strip() == "```bash":
            start = number
        elif start is not None and line.strip() == "```":
            above = next((text for text in reversed(lines[:start]) if text.strip()), "")
            reason = re.fullmatch(r"<!--\s*not run:(.*)-->", above.strip())
            text = "\n".join(lines[start + 1 : number])
            blocks.append(Block(start + 1, text, reason.group(1).strip() if reason else None))
            start = None
    assert start is None, f"README.md:{start}: block without an end"
    return blocks


def command_here(line: str) -> str:
    """The command as it is run in this test."""
    if line.strip() == QUICKSTART:
        return f"{QUICKSTART} {SMALL}"
    if line.split("#")[0].strip().startswith(TEST_SUITE):
        return "test -f launch/test.sh"
    return line


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = copy_repository(tmp_path / "clone")
    # "Your own text", as far as the README speaks of it: enough words for the default vocabulary.
    sources = sorted(Path(json.__file__).parents[1].glob("*.py"))[:80]
    texts = [source.read_text(encoding="utf-8", errors="ignore") for source in sources]
    (folder / "my.txt").write_text("\n".join(texts[:40]), encoding="utf-8")
    (folder / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[40:]))
    borrow_environment(folder / ".venv")
    return folder


def test_blocks_are_found_with_their_reasons() -> None:
    run = "```bash\na\nb\n```\n"
    not_run = "<!-- not run: costs money -->\n```bash\nc\n```\n```python\nd\n```\n"
    unexplained = "<!-- not run: -->\n\n```bash\ne\n```\n"
    assert blocks_of(run + not_run + unexplained) == [
        Block(1, "a\nb", None),
        Block(6, "c", "costs money"),
        Block(14, "e", ""),
    ]


def test_readme_begins_with_the_two_commands_and_excuses_no_block_without_a_reason() -> None:
    blocks = blocks_of((ROOT / "README.md").read_text(encoding="utf-8"))
    run = [line.split("#")[0].strip() for block in blocks if block.not_run is None for line in block.text.splitlines()]
    assert [line for line in run if line.startswith("bash launch/")][:2] == [QUICKSTART, TEST_SUITE]
    assert all(block.not_run != "" for block in blocks), "a block is marked `not run:` without a reason"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_the_readme_work_in_order(clone: Path) -> None:
    blocks = [block for block in blocks_of((clone / "README.md").read_text(encoding="utf-8")) if block.not_run is None]
    assert blocks, "README.md has no block of commands that is run"
    for block in blocks:
        script = "set -euo pipefail\n" + "\n".join(map(command_here, block.text.splitlines()))
        result = subprocess.run(
            ["bash", "-c", script],
            cwd=clone,
            env=offline_environment(clone / ".venv"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert result.returncode == 0, (
            f"README.md:{block.line}: exit {result.returncode}\n{script}\n{result.stdout[-6000:]}"
        )
