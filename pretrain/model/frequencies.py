"""Frequencies of rotary positions, unscaled or scaled for a longer context.

The numbers are those of the rope types `default`, `llama3` and `yarn` of Hugging Face transformers, to the last bit.
Shapes: d head width.
"""

import math

import torch
from torch import Tensor

from pretrain.config.model import ModelConfig, RopeScaling


def rotary_frequencies(model: ModelConfig) -> Tensor:
    """Radians [d / 2] by which each pair of elements turns from one position to the next; fp32, on the host."""
    half = torch.arange(0, model.head_size, 2, dtype=torch.float32, device="cpu")
    wavelengths = model.rope_base ** (half / model.head_size)  # over 2 pi
    match model.rope_scaling.kind:
        case "none":
            return 1.0 / wavelengths
        case "llama3":
            return _llama3(1.0 / wavelengths, model.rope_scaling)
        case "yarn":
            return _yarn(wavelengths, model)


def rotary_amplitude(scaling: RopeScaling) -> float:
    """Factor of all cosines and sines."""
    if scaling.kind != "yarn":
        return 1.0
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.attention_factor is None else scaling.attention_factor


def rotary_tables(frequencies: Tensor, length: int, scaling: RopeScaling) -> Tensor:
    """Cosines and sines [2, s, d / 2] of the first positions, fp32, where the frequencies are."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=frequencies.device), frequencies)
    tables = torch.stack((angles.cos(), angles.sin()))
    amplitude = rotary_amplitude(scaling)
    return tables if amplitude == 1.0 else tables * amplitude


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies are divided by the factor. Between slow and fast ones the share of the division falls."""
    length, low, high = _length(scaling), scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    kept = (length / wavelengths - low) / (high - low)
    between = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    slow, fast = wavelengths > length / low, wavelengths < length / high
    return torch.where(slow, frequencies / scaling.factor, torch.where(fast, frequencies, between))


def _yarn(wavelengths: Tensor, model: ModelConfig) -> Tensor:
    """A mixture of both frequencies, whose shares change along the elements of a head."""
    scaling, width = model.rope_scaling, model.head_size

    def element(turns: float) -> float:
        """The pair of elements that makes so many turns in the original length."""
        return width * math.log(_length(scaling) / (turns * 2 * math.pi)) / (2 * math.log(model.rope_base))

    first = max(math.floor(element(scaling.beta_fast)), 0)
    last: float = min(math.ceil(element(scaling.beta_slow)), width - 1)
    if first == last:
        last += 0.001
    divided = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - first) / (last - first)).clamp(0, 1)
    kept = 1 - divided
    return 1.0 / (scaling.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def _length(scaling: RopeScaling) -> int:
    assert scaling.original_length is not None, "the configuration is checked"
    return scaling.original_length
