"""Laws of README.md and docs/ that can be checked without running a command."""

import re
import shlex
import statistics
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from pretrain.commands.table import COMMANDS
from pretrain.config.describe import record_keys
from pretrain.config.renamed import RENAMED
from pretrain.config.run import RunConfig
from pretrain.exit_codes import ExitCode
from pretrain.outcome.failure import FailureKind
from tests.counts import paragraphs
from tests.support.pages import (
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    keys_of,
    links_of,
    output_below,
    read_page,
    with_output,
)

MEDIAN_WORDS = 20


def test_blocks_are_found_with_their_reasons() -> None:
    run = "```bash\na\nb\n```\n"
    not_run = "<!-- not run: costs money -->\n```bash\nc\n```\n```python\nd\n```\n"
    unexplained = "<!-- not run: -->\n\n```bash\ne\n```\n"
    assert blocks_of(run + not_run + unexplained) == [
        Block(1, "a\nb"),
        Block(6, "c", not_run="costs money"),
        Block(14, "e", not_run=""),
    ]


def test_output_below_a_command_is_replaced() -> None:
    page = "<!-- exits 2, after: a -->\n```bash\nb\n```\n\n```text\nold\n```\n\n```text\nother\n```\n"
    (block,) = blocks_of(page)
    assert block == Block(2, "b", exits=2, after="a")
    assert output_below(page, block) == "old\n"
    assert with_output(page, block, "new\n") == page.replace("old", "new")


def test_every_page_is_listed_and_linked_from_the_readme() -> None:
    found = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert found == {page for page in PAGES if page.startswith("docs/")}
    assert set(PAGES) - {"README.md"} <= set(links_of(read_page("README.md")))


def test_readme_begins_with_the_two_commands() -> None:
    commands = [line for block in blocks_of(read_page("README.md")) for line in block.text.splitlines()]
    assert commands[:2] == ["bash launch/quickstart.sh", "bash launch/test.sh"]


def test_readme_lists_every_command() -> None:
    listed = re.findall(r"(?m)^\| `pretrain ([\w-]+)` \|", read_page("README.md"))
    assert sorted(listed) == sorted(COMMANDS)


def test_readme_paragraphs_are_short() -> None:
    lengths = [len(paragraph.split()) for paragraph in paragraphs(read_page("README.md"))]
    assert statistics.median(lengths) < MEDIAN_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_are_not_run_have_a_reason(page: str) -> None:
    assert all(block.not_run != "" for block in blocks_of(read_page(page)))


@pytest.mark.parametrize("page", PAGES)
def test_commands_work_in_zsh(page: str) -> None:
    """zsh takes unquoted brackets, braces, stars and question marks for patterns, and a leading = for a command."""
    for block in blocks_of(read_page(page)):
        for word in unquoted_words(block.text):
            assert not re.search(r"[\[\]{}*?^~]|^=", word), f"{page}:{block.line}: quote {word}"


def unquoted_words(commands: str) -> list[str]:
    """The words of commands, without their quoted parts and without comments."""
    kept = re.sub(r"(?m)(^|\s)#.*$", "", commands)
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", kept).split()


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_split_by_a_shell(page: str) -> None:
    for block in blocks_of(read_page(page)):
        shlex.split(block.text, comments=True)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links_of(read_page(page)):
        if not re.match(r"https?://", link):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page: str) -> None:
    free = ("cluster.environment.", "data.mixture.", "evaluation.domains.")
    renamed = RENAMED if page == "CHANGELOG.md" else ()
    unknown = keys_of(read_page(page)).difference(record_keys(RunConfig), renamed)
    assert [key for key in sorted(unknown) if not key.startswith(free)] == []


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_every_exit_code_is_documented(code: ExitCode) -> None:
    assert re.search(rf"(?m)^\| {code.value} \|", read_page("docs/errors.md"))


def subclasses(kind: type) -> list[type]:
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]


def user_errors() -> list[str]:
    """Classes of errors in the modules of the product."""
    for module in ("pretrain.config.errors", "data_pipeline.errors"):
        __import__(module)
    return sorted({kind.__name__ for kind in subclasses(UserError) if kind.__module__.endswith(".errors")})


@pytest.mark.parametrize("name", user_errors())
def test_every_class_of_error_is_documented(name: str) -> None:
    assert f"`{name}`" in read_page("docs/errors.md")


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_is_documented(kind: FailureKind) -> None:
    assert f"| `{kind.value}` |" in read_page("docs/errors.md")


def test_images_are_small() -> None:
    assert all(path.stat().st_size < 100_000 for path in Path(ROOT / "docs" / "images").iterdir())
