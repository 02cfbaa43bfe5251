"""Token IDs of a run's tokenizer against those of its export, on megabytes of code, CJK, Arabic and emoji.

Code is Python's standard library; the other texts are random words of their scripts with punctuation and Latin between.

    python -m tests.benchmarks.tokenizer_export RUN [--mb 10]
"""

import argparse
import random
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.export.tokenizer_json import different_ids, write_tokenizer

SCRIPTS = {
    "CJK": ((0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x3000, 0x303F)),
    "Arabic": ((0x0620, 0x064A), (0x064B, 0x0655), (0x0660, 0x0669), (0xFE70, 0xFEFC)),
    "emoji": ((0x1F300, 0x1FAFF), (0x200D, 0x200D), (0xFE0F, 0xFE0F), (0x1F3FB, 0x1F3FF), (0x1F1E6, 0x1F1FF)),
}
DOCUMENT = 20_000
"""Characters of a document."""


def documents_of(script: str, size: int) -> Iterator[str]:
    """Documents of about `size` bytes in all."""
    if script == "code":
        sources = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
        texts = (path.read_text(encoding="utf-8", errors="ignore") for path in sources)
    else:
        choose = random.Random(script)
        ranges = SCRIPTS[script]
        texts = iter(lambda: "".join(_words(choose, ranges)), "")
    done = 0
    for text in texts:
        done += len(text.encode())
        yield text
        if done >= size:
            return


def _words(choose: random.Random, ranges: tuple[tuple[int, int], ...]) -> Iterator[str]:
    length = 0
    while length < DOCUMENT:
        word = "".join(chr(choose.randint(*choose.choice(ranges))) for _ in range(choose.randint(1, 8)))
        between = choose.choice((" ", " ", "  ", "\n", ", ", "", ". ab ", "\u060c ", "\u3002"))
        length += len(word) + len(between)
        yield word + between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mb", type=float, default=10.0)
    given = parser.parse_args()
    files = TokenizerFiles.only_one_in(given.run / "tokenizer")
    assert files is not None, f"{given.run} has no tokenizer"
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(files, Path(folder), seq_length=1024)
        for script in ("code", *SCRIPTS):
            texts = list(documents_of(script, int(given.mb * 1e6)))
            size = sum(len(text.encode()) for text in texts)
            others, lost = different_ids(files.load(), Path(folder), texts)
            print(f"{script}: {size / 1e6:.1f} MB in {len(texts)} documents, {others} with other IDs, {lost} lost")


if __name__ == "__main__":
    main()
