"""Continuations: where they end, what the model sees, what is shown when."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer
from pretrain.config.load import load_generate_config, load_run_config
from pretrain.generation.continuing import Continuation, continue_all
from pretrain.generation.decoder import Decoder
from pretrain.generation.growing_text import GrowingText
from pretrain.generation.stepper import CachedTexts
from pretrain.huggingface.weights import units
from tests.support.corpus import make_texts
from tests.support.randomised import random_weight
from tests.support.whole_texts import WholeTexts

GREEDY = load_generate_config(["run=x", "temperature=0"])
VOCAB = 61


def successor(seen: list[list[int]], vocab_size: int = 10) -> Callable[[Tensor], Tensor]:
    """A model that is sure of the next number, and notes what it saw."""

    def logits_of(tokens: Tensor) -> Tensor:
        seen.append(tokens[0].tolist())
        return torch.nn.functional.one_hot((tokens + 1) % vocab_size, vocab_size).float() * 100

    return logits_of


def spelled(tokens: Any) -> str:
    return "".join(chr(97 + token) for token in tokens)


def made_from(prompts: list[list[int]], stop: tuple[str, ...] = (), seed: int = 0) -> list[Continuation]:
    return [Continuation(each, seed + i, GrowingText(spelled, each, stop)) for i, each in enumerate(prompts)]


def continued(prompt: list[int], end_token: int = 99, max_context: int = 100, new: int = 8, **options: Any) -> Any:
    seen: list[list[int]] = []
    (made,) = made_from([prompt], **options)
    stepper = WholeTexts(successor(seen), max_context)
    continue_all(stepper, [made], GREEDY, max_new_tokens=new, end_token=end_token)
    return made, seen


def tokens_of(made: Continuation) -> list[int]:
    return [each.token for each in made.chosen]


def test_only_new_tokens_are_returned_and_not_too_many() -> None:
    made, _ = continued([1, 2], new=3)
    assert (tokens_of(made), made.text, made.reason) == ([3, 4, 5], "def", "length")


def test_it_ends_before_the_end_token() -> None:
    assert tokens_of(continued([1, 2], end_token=5)[0]) == [3, 4]
    made, _ = continued([1, 4], end_token=5)
    assert (tokens_of(made), made.reason) == ([], "end")


def test_it_ends_before_a_stop_text_that_spans_tokens() -> None:
    made, _ = continued([1, 2], stop=("fg", "zz"))
    assert (made.text, made.reason) == ("de", "stop")


def test_a_full_window_drops_its_first_half() -> None:
    made, seen = continued([1, 2, 3], max_context=4, new=5)
    assert tokens_of(made) == [4, 5, 6, 7, 8]
    assert seen == [[1, 2, 3], [1, 2, 3, 4], [3, 4, 5], [3, 4, 5, 6], [5, 6, 7]]


def tiny_decoder(*overrides: str) -> Decoder:
    shape = ("model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.num_query_groups=1")
    model = load_run_config([*shape, "model.ffn_hidden_size=48", "model.seq_length=16", *overrides]).model
    table = [pair for unit in units(model, VOCAB) for pair in zip(unit.ours, unit.our_shapes, strict=True)]
    return Decoder(model, {name: random_weight(name, shape) for name, shape in table})


def drawn(stepper: Any, prompts: list[list[int]], choice: Any, new: int = 40) -> list[list[int]]:
    made = made_from(prompts, seed=7)
    continue_all(stepper, made, choice, max_new_tokens=new, end_token=5)
    return [tokens_of(each) for each in made]


PROMPTS = [[8, 9], [3, 4, 6, 7, 8, 9], [11], list(range(20, 45))]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_with_a_cache_generates_what_each_prompt_does_without(family: str, temperature: float) -> None:
    """Also past the window, and after rows have ended."""
    groups = () if family == "tiny_llama" else ("model.num_query_groups=2",)
    decoder = tiny_decoder(f"model={family}", *groups)
    choice = replace(GREEDY, temperature=temperature)

    def whole(tokens: Tensor) -> Tensor:
        return decoder.extend(tokens.tolist(), decoder.new_cache(1))[:, None]

    together = drawn(CachedTexts(decoder, VOCAB, 16), PROMPTS, choice)
    assert together == drawn(WholeTexts(whole, 16), PROMPTS, choice)
    for number, prompt in enumerate(PROMPTS):
        (made,) = made_from([prompt], seed=7 + number)
        continue_all(CachedTexts(decoder, VOCAB, 16), [made], choice, max_new_tokens=40, end_token=5)
        assert tokens_of(made) == together[number]


def test_log_probabilities_are_those_of_the_model() -> None:
    decoder = tiny_decoder("model=tiny_llama")
    (made,) = made_from([[8, 9]])
    options = {"max_new_tokens": 3, "end_token": 5, "log_probabilities": 2}
    continue_all(CachedTexts(decoder, VOCAB, 16), [made], replace(GREEDY, temperature=2.0, top_k=5), **options)
    text = [8, 9, *tokens_of(made)]
    for place, chosen in enumerate(made.chosen, 2):
        values = decoder.extend([text[:place]], decoder.new_cache(1))[0].double().log_softmax(0)
        assert chosen.log_probability == pytest.approx(float(values[chosen.token]), abs=1e-5)
        assert chosen.likeliest[0] == (int(values.argmax()), pytest.approx(float(values.max()), abs=1e-5))
        assert len(chosen.likeliest) == 2


def test_what_a_tokenizer_lacks_is_never_drawn() -> None:
    decoder = tiny_decoder("model=tiny_llama")
    assert max(token for row in drawn(CachedTexts(decoder, 20, 16), [[8, 9]] * 4, GREEDY) for token in row) < 20


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    config = TokenizerConfig(kind="bpe", vocab_size=320, sample_bytes=1 << 20, path=None, eod=None, seed=0)
    return SentencePieceTokenizer(train_tokenizer(lambda: make_texts(40), config))


@given(text=st.text(max_size=30), stop=st.lists(st.text(min_size=1, max_size=3), max_size=2), cut=st.integers(0, 5))
def test_pieces_that_are_shown_make_the_text(tokenizer: Any, text: str, stop: list[str], cut: int) -> None:
    growing = GrowingText(tokenizer.decode, tokenizer.encode(text[:cut] or "a"), stop)
    pieces = []
    for token in tokenizer.encode(text[cut:]):
        pieces.append(growing.add(token))
        assert not pieces[-1].endswith("\ufffd") or growing.is_stopped or "\ufffd" in text
        if growing.is_stopped:
            break
    pieces.append(growing.rest())
    assert "".join(pieces) == growing.text
    assert not any(each in growing.text for each in stop)


def test_half_a_character_is_held_back(tokenizer: Any) -> None:
    growing = GrowingText(tokenizer.decode, tokenizer.encode("a"))
    shown = [growing.add(token) for token in tokenizer.encode("🙂b")]
    assert shown[:3] == ["", "", ""]
    assert "".join(shown) == "🙂b"


def test_the_beginning_of_a_stop_text_is_held_back() -> None:
    growing = GrowingText(spelled, [0], ("cdx",))
    assert [growing.add(token) for token in (1, 2, 3, 4)] == ["b", "", "", "cde"]
