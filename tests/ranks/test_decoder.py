"""The cached decoder computes what the engine computes from the whole text, with every kind of model."""

from typing import Any

import pytest
import torch

from pretrain.checkpoint.whole_tensors import StoredWeights
from pretrain.config.run import RunConfig
from pretrain.generation.decoder import Decoder
from pretrain.run.state import RunState
from tests.support.exporting import FAMILIES
from tests.support.models import EOD_ID, run_config
from tests.support.randomised import randomise
from tests.support.ranks import run_ranks
from tests.support.saving import store_of
from tests.support.training import start

YARN = ("model.rope_scaling.kind=yarn", "model.rope_scaling.factor=4", "model.rope_scaling.original_length=30")
MODELS = {
    **FAMILIES,
    "layernorm_qk": ("all_sorts", "model.qk_norm=true"),
    "odd": ("gpt_odd",),
    "yarn": ("llama", *YARN),
    "windows": ("llama", "model.num_layers=3", "model.window=4", "model.full_attention_every=2"),
    "no_rope": ("llama", "model.num_layers=3", "model.no_rope_every=2"),
    "experts": ("experts",),
    "balanced experts": ("balanced_experts",),
    "gelu experts": ("experts", "model.activation=gelu"),
}
LARGEST = 1e-5
LENGTHS = (3, 9, 1, 6)


def whole_logits(here: Any, config: RunConfig, folder: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    engine = start(here, config)
    randomise(engine)
    store_of(engine, folder).save(engine, RunState(step=1), {})
    return [engine.logits(torch.tensor([text]))[0] for text in texts]


def decoder_of(config: RunConfig, folder: Any) -> Decoder:
    stored = StoredWeights(folder / "checkpoints" / "step-00000001")
    weights = {name: stored.read(name) for name in stored.shapes}
    return Decoder(config.model, weights, document_end=EOD_ID if config.data.document_mask else None)


def texts_of(config: RunConfig, count: int = 4) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    texts = torch.randint(3, 91, (count, config.model.seq_length), generator=generator)
    if config.data.document_mask:
        texts[torch.rand(texts.shape, generator=generator) < 0.2] = EOD_ID
    return texts.tolist()


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_cached_equals_whole(name, documents, tmp_path):
    config = run_config(*MODELS[name], f"data.document_mask={str(documents).lower()}")
    texts = texts_of(config)
    (whole,) = run_ranks(whole_logits, 1, config, tmp_path, texts)
    decoder = decoder_of(config, tmp_path)
    scale = max(float(logits.std()) for logits in whole)
    # Rows of several lengths, then one token at a time, then several at once.
    cache = decoder.new_cache(4)
    done = list(LENGTHS)
    found = decoder.extend([text[:n] for text, n in zip(texts, done, strict=True)], cache)
    for counts in ((1, 1, 1, 1), (1, 1, 1, 1), (2, 1, 3, 2), (1, 4, 1, 1)):
        for row, logits in enumerate(whole):
            assert float((found[row] - logits[done[row] - 1]).abs().max()) <= LARGEST * max(1.0, scale)
        found = decoder.extend([text[n : n + c] for text, n, c in zip(texts, done, counts, strict=True)], cache)
        done = [n + c for n, c in zip(done, counts, strict=True)]


def test_equal_rows_take_the_short_way_to_the_same_logits(tmp_path):
    config = run_config(*FAMILIES["llama"])
    texts = texts_of(config)
    (whole,) = run_ranks(whole_logits, 1, config, tmp_path, texts)
    decoder = decoder_of(config, tmp_path)
    cache = decoder.new_cache(4)
    found = decoder.extend([text[:5] for text in texts], cache)
    for place in range(5, config.model.seq_length):
        assert all(float((found[row] - whole[row][place - 1]).abs().max()) < 3e-5 for row in range(4))
        found = decoder.extend([text[place : place + 1] for text in texts], cache)
    with pytest.raises(ValueError, match="cannot get"):
        decoder.extend([[3]] * 4, cache)
