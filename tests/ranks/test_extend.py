"""An engine with a cache gives the logits of whole texts, and writes the same text, in every layout."""

from typing import Any

import pytest
import torch

from pretrain.config.load import load_generate_config
from pretrain.config.run import RunConfig
from pretrain.generation.continuing import Continuation, continue_all
from pretrain.generation.growing_text import GrowingText
from pretrain.generation.stepper import CachedTexts
from tests.support.models import EOD_ID, VOCAB_SIZE, batches, run_config
from tests.support.randomised import randomise
from tests.support.ranks import run_ranks
from tests.support.training import start
from tests.support.whole_texts import WholeTexts

LAYERS = ("model.num_layers=4", "model.num_heads=4")
WINDOWS = ("model.window=4", "model.full_attention_every=3")
MODELS = {
    "windows": ("llama", *LAYERS, *WINDOWS),
    "gpt": ("gpt", *LAYERS),
    "llama": ("llama", *LAYERS, "model.num_query_groups=2"),
}
LAYOUTS = [
    ("gpt", 1, {}, False),
    ("llama", 2, {"tp": 2, "sp": True}, False),
    ("gpt", 2, {"pp": 2, "vp": 2}, True),
    ("windows", 4, {"cp": 2, "pp": 2}, True),
    pytest.param("llama", 4, {"tp": 2, "pp": 2}, True, marks=pytest.mark.full),
    pytest.param("gpt", 4, {"tp": 4}, False, marks=pytest.mark.full),
    pytest.param("llama", 4, {"pp": 4}, False, marks=pytest.mark.full),
    pytest.param("llama", 2, {"zero_stage": 3}, True, marks=pytest.mark.full),
]
LENGTHS, COUNTS = (3, 7, 1, 5), ((1, 1, 1, 1), (2, 1, 3, 2), (1, 4, 1, 1))


def differences(here: Any, config: RunConfig, texts: list[list[int]]) -> list[float]:
    """The largest differences after each extension, with and without a cache."""
    engine = start(here, config)
    randomise(engine)
    whole = [engine.logits(torch.tensor([text]))[0] for text in texts]
    cache, done, largest = engine.new_cache(len(texts)), list(LENGTHS), []
    found = engine.extend([text[:n] for text, n in zip(texts, done, strict=True)], cache)
    for counts in COUNTS:
        largest.append(max(float((found[i] - whole[i][n - 1]).abs().max()) for i, n in enumerate(done)))
        found = engine.extend([text[n : n + c] for text, n, c in zip(texts, done, counts, strict=True)], cache)
        done = [n + c for n, c in zip(done, counts, strict=True)]
    again = [engine.logits(torch.tensor([text]))[0] for text in texts]
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True)), "the cache left traces"
    return largest


def config_of(model: str, world_size: int, layout: dict[str, Any], documents: bool) -> RunConfig:
    dp = world_size // (layout.get("tp", 1) * layout.get("cp", 1) * layout.get("pp", 1))
    return run_config(*MODELS[model], f"data.document_mask={str(documents).lower()}", *batches(dp), **layout)


@pytest.mark.parametrize(("model", "world_size", "layout", "documents"), LAYOUTS)
def test_cached_equals_whole(model, world_size, layout, documents):
    config = config_of(model, world_size, layout, documents)
    generator = torch.Generator().manual_seed(5)
    texts = torch.randint(3, VOCAB_SIZE, (4, config.model.seq_length), generator=generator)
    if documents:
        texts[torch.rand(texts.shape, generator=generator) < 0.2] = EOD_ID
    for found in run_ranks(differences, world_size, config, texts.tolist()):
        assert max(found) < 2e-5


def written(here: Any, config: RunConfig, new: int, cached: bool) -> list[list[int]]:
    engine = start(here, config)
    randomise(engine)
    length = config.model.seq_length
    stepper = CachedTexts(engine, VOCAB_SIZE, length) if cached else WholeTexts(engine.logits, length)
    made = [Continuation(prompt, 0, GrowingText(str, prompt)) for prompt in ([5], [7, 8, 9], list(range(10, 40)))]
    continue_all(stepper, made, load_generate_config(["run=x", "temperature=0"]), max_new_tokens=new, end_token=EOD_ID)
    return [[each.token for each in one.chosen] for one in made]


@pytest.mark.parametrize(("model", "world_size", "layout", "documents"), LAYOUTS)
def test_greedy_text_is_that_of_whole_texts(model, world_size, layout, documents):
    """Beyond the window of 16 tokens."""
    expected = run_ranks(written, 1, config_of(model, 1, {}, documents), 40, False)[0]
    for found in run_ranks(written, world_size, config_of(model, world_size, layout, documents), 40, True):
        assert found == expected
