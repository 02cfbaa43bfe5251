"""Speed of generation with a cache against computing each whole text again, by processor time on one thread.

The model has the quickstart's shape and random weights: speed does not depend on their values.

    python -m tests.benchmarks.generation
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.config.load import load_generate_config, load_run_config
from pretrain.generation.continuing import Continuation, continue_all
from pretrain.generation.decoder import Decoder
from pretrain.generation.growing_text import GrowingText
from pretrain.generation.stepper import CachedTexts, Stepper
from pretrain.huggingface.weights import units
from tests.support.whole_texts import WholeTexts

VOCAB = 2048
GREEDY = load_generate_config(["run=x", "temperature=0"])


def decoder(length: int) -> Decoder:
    """The quickstart's model with a context of `length`."""
    model = load_run_config(["experiment=quickstart", f"model.seq_length={length}"]).model
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for unit in units(model, VOCAB):
        for name, shape in zip(unit.ours, unit.our_shapes, strict=True):
            weights[name] = torch.randn(shape, generator=generator) * 0.06
    return Decoder(model, weights)


def whole(model: Decoder) -> Callable[[Tensor], Tensor]:
    """The logits of all places, as the engine computes them for one place."""
    return lambda tokens: model.extend(tokens.tolist(), model.new_cache(1))[:, None]


def tokens_per_second(stepper: Stepper, rows: int, new: int) -> float:
    """New tokens of all rows in a second of processor time."""
    made = [Continuation([5, 6, 7, 8], row, GrowingText(str, [5])) for row in range(rows)]
    started = time.process_time()
    continue_all(stepper, made, GREEDY, max_new_tokens=new, end_token=-1)
    return sum(len(each.chosen) for each in made) / (time.process_time() - started)


def main() -> None:
    torch.set_num_threads(1)
    for length in (256, 1024):
        model, new = decoder(length), length - 4
        slow = tokens_per_second(WholeTexts(whole(model), length), 1, new)
        single = tokens_per_second(CachedTexts(model, VOCAB, length), 1, new)
        print(f"to {length} tokens: whole texts {slow:.0f} tokens/s, cache {single:.0f}, ratio {single / slow:.1f}")
        for rows in (8, 32):
            many = tokens_per_second(CachedTexts(model, VOCAB, length), rows, new)
            print(f"  batch {rows}: {many:.0f} tokens/s, {many / single:.1f} times batch 1")


if __name__ == "__main__":
    main()
