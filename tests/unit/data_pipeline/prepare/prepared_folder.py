"""A small prepared dataset for the tests of this folder."""

from tests.support.corpus import (
    make_texts,
)

TEXTS = [*make_texts(60), "日本語 🙂\u2581\u2585 </s>\r\n"]

SPLITS = ("train", "validation")

UNTOLD = {"inputs.json"}  # holds times of the source, which other tests touch


def contents(folder, without=()):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name not in without}
