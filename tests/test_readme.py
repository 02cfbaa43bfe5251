"""Every command of README.md and docs/ works, in the order of the pages, in a clone where nothing was run before.

`tests/unit/test_docs.py` states what can be seen without running anything.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.fresh_clone import borrow_environment, copy_repository, offline_environment
from tests.support.pages import PAGES, Block, blocks_of, output_below, read_page

# The first run is minutes long by design; here it learns from one text for a few steps.
QUICKSTART = "bash launch/quickstart.sh"
SMALL = (
    "'data.inputs=[my.txt]' data.validation_min_bytes=4096 tokenizer=bpe_4k tokenizer.vocab_size=400 train.max_steps=4"
)
# Models of the other trainings are tiny too: the commands are what is tested.
TINY = "evaluation.final_max_samples=8 model.hidden_size=32 model.ffn_hidden_size=64"
TRAINING = re.compile(r"(torchrun .*)?pretrain train\b")
# These tests are some of its tests.
TEST_SUITE = "bash launch/test.sh"
FIRST = "docs/getting-started.md"


def run_commands(page: str, clone: Path) -> None:
    """Run the blocks of a page, each in a shell of its own."""
    markdown = read_page(page)
    for block in blocks_of(markdown):
        if block.not_run is None:
            check_block(page, block, clone, output_below(markdown, block))


def has_commands(page: str) -> bool:
    return any(block.not_run is None for block in blocks_of(read_page(page)))


def check_block(page: str, block: Block, clone: Path, shown: str | None) -> None:
    code, output = run_block(block, clone)
    assert code == block.exits, f"{page}:{block.line}: exit {code}\n{block.text}\n{output[-6000:]}"
    if shown is not None and block.exits:
        assert last_message(output) == shown, f"{page}:{block.line}: run `python -m tests.refresh_docs`"


def run_block(block: Block, clone: Path) -> tuple[int, str]:
    """The exit code and the output of both streams."""
    lines = block.text.splitlines() if block.exits else map(command_here, block.text.splitlines())
    script = "\n".join(["set -euo pipefail", block.after, *lines])
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
    return result.returncode, result.stdout


def last_message(output: str) -> str:
    """The error at the end of an output, without times of day."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in output.splitlines()]
    starts = [number for number, line in enumerate(lines) if re.match(r"pretrain: error:|training diverged", line)]
    return "".join(line + "\n" for line in lines[starts[-1] if starts else -1 :])


def command_here(line: str) -> str:
    """The command as these tests run it."""
    if line.strip() == QUICKSTART:
        return f"{QUICKSTART} {SMALL}"
    if line.split("#")[0].strip().startswith(TEST_SUITE):
        return "test -f launch/test.sh"
    return f"{line} {TINY}" if TRAINING.match(line) else line


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_repository(tmp_path_factory.mktemp("docs") / "clone")
    # "Your own text": enough words for the default vocabulary.
    sources = sorted(Path(json.__file__).parents[1].glob("*.py"))[:80]
    texts = [source.read_text(encoding="utf-8", errors="ignore") for source in sources]
    (folder / "my.txt").write_text("\n".join(texts[:40]), encoding="utf-8")
    (folder / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[40:]))
    borrow_environment(folder / ".venv")
    return folder


@pytest.fixture(scope="module")
def started(clone: Path) -> Path:
    """A clone with the dataset and the run that the later pages use."""
    run_commands(FIRST, clone)
    return clone


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_readme_work(clone: Path) -> None:
    run_commands("README.md", clone)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("README.md", FIRST) and has_commands(page)])
def test_commands_of_docs_work(page: str, started: Path) -> None:
    run_commands(page, started)
