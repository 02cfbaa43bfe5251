"""Writes the messages that docs/ shows: `python -m tests.refresh_docs` runs each example that ends with an error.

Run it in a folder with `my.txt` and `more.jsonl`, after the commands of docs/getting-started.md.
"""

from pathlib import Path

from tests.support.pages import PAGES, ROOT, blocks_of, output_below, read_page, with_output
from tests.test_readme import last_message, run_block


def main() -> None:
    for page in PAGES:
        markdown = read_page(page)
        for block in reversed(blocks_of(markdown)):  # from the end: the lines above keep their numbers
            if block.exits and output_below(markdown, block) is not None:
                code, output = run_block(block, Path.cwd())
                assert code == block.exits, f"{page}:{block.line}: exit {code}\n{output[-3000:]}"
                markdown = with_output(markdown, block, last_message(output))
        (ROOT / page).write_text(markdown, encoding="utf-8")


if __name__ == "__main__":
    main()
