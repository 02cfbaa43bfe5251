"""Rotary frequencies, pair by pair in double precision, as the papers and Llama 3.1 define them."""

import math

from pretrain.config.model import ModelConfig


def reference_frequencies(model: ModelConfig) -> list[float]:
    """Radians by which each pair of elements turns from one position to the next."""
    scaling, width = model.rope_scaling, model.head_size
    plain = [model.rope_base ** (-2 * pair / width) for pair in range(width // 2)]
    if scaling.kind == "none":
        return plain
    assert scaling.original_length is not None
    turns = [frequency * scaling.original_length / (2 * math.pi) for frequency in plain]
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = [(count - low) / (high - low) for count in turns]
    else:
        # The pair, counted in fractions, that makes a number of turns; the ramp runs between whole pairs.
        log_base = math.log(model.rope_base)

        def pair_of(count: float) -> float:
            return width / 2 * math.log(scaling.original_length / (2 * math.pi * count)) / log_base

        first = max(math.floor(pair_of(scaling.beta_fast)), 0)
        last = min(math.ceil(pair_of(scaling.beta_slow)), width - 1)
        kept = [1 - (pair - first) / max(last - first, 1e-3) for pair in range(width // 2)]
    shares = [min(max(share, 0.0), 1.0) for share in kept]
    return [
        share * frequency + (1 - share) * frequency / scaling.factor
        for share, frequency in zip(shares, plain, strict=True)
    ]


def reference_amplitude(model: ModelConfig) -> float:
    """Factor of all cosines and sines."""
    scaling = model.rope_scaling
    if scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
