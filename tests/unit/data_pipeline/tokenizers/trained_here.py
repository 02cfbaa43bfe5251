"""Tokenizers trained for the tests, and text that is hard to reproduce."""

import functools

from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from tests.support.corpus import make_texts, tokenizer_config


@functools.cache
def trained(kind):
    texts = [*make_texts(60, seed=3), "日本語の文章 and emoji 🙂🙂 \u2581 \u2585 </s> <unk> <0x41>\r\n\x00" * 20]
    return SentencePieceTokenizer(train_tokenizer(lambda: texts, tokenizer_config(kind=kind)))


AWKWARD = [
    "",
    " ",
    "  \n\n\t x \n ",
    "</s><unk><0x41><s><pad>",
    "\u2581",
    "a\u2581\u2581 \u2581b",
    "\u2585\u2047",
    "\ufeff\r\n\x00\x1b[0m\x7f",
    "e\u0301 é ﬁ ½ Ａ",
    "def f(x):\n\treturn  x ** 12345\n",
    "漢字かな交じり文、한국어 🏳️‍🌈👨‍👩‍👧‍👦\U0010ffff\ue000",
]
