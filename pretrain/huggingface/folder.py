"""A Hugging Face folder as weights under our names: checked when it is opened, read one unit at a time.

Only safetensors are read. Pickled weights can run code, so they are refused.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.config.errors import ConfigError, RunError
from pretrain.config.model import ModelConfig
from pretrain.huggingface.architectures import GPT2, architecture_of
from pretrain.huggingface.foreign_config import end_token_of, model_of, vocab_size_of
from pretrain.huggingface.weights import Unit, units

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_FIRST_BYTES = 4096
"""Bytes of each tensor that enter the digest."""
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Endings of tensors that older versions of transformers wrote beside the weights."""


class ForeignWeights:
    """The weights of a folder.

    Opening it raises UserError, naming the key, file or tensor, unless every weight of the model is there in its shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_json(folder / CONFIG)
        try:
            self.model: ModelConfig = model_of(config, name=folder.resolve().name)
            self.vocab_size = vocab_size_of(config)
            self.end_token = end_token_of(config)
        except ConfigError as error:
            raise ConfigError([f"{folder / CONFIG}: {problem}" for problem in error.problems]) from None
        self._files = _files_of_tensors(folder)
        self._prefix = _missing_prefix(self.model, self._files)
        self._check()
        self._held: tuple[Unit, list[Tensor]] | None = None

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return tuple(units(self.model, self.vocab_size))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By our names."""
        return {name: shape for unit in self.units for name, shape in zip(unit.ours, unit.our_shapes, strict=True)}

    def read(self, name: str) -> Tensor:
        """One whole tensor as fp32, by our name. The other tensors of its unit are kept until another is read."""
        unit = self._unit_of[name]
        if self._held is None or self._held[0] is not unit:
            self._held = None  # freed before the next is read
            self._held = unit, unit.to_ours([self._theirs(each) for each in unit.theirs])
        return self._held[1][unit.ours.index(name)]

    def digest(self) -> str:
        """SHA-256 of the configuration, of the names and shapes of all tensors, and of the first values of each.

        It differs for models of one shape, as a fine-tuned one and its base, and reads little of their files.
        """
        found = hashlib.sha256((self.folder / CONFIG).read_bytes())
        for file in sorted(set(self._files.values())):
            with (self.folder / file).open("rb") as stream:
                header = stream.read(int.from_bytes(stream.read(8), "little"))
                found.update(header)
                begin = stream.tell()
                for name, entry in sorted(json.loads(header).items()):
                    if name != "__metadata__":
                        first, end = entry["data_offsets"]
                        stream.seek(begin + first)
                        found.update(stream.read(min(end - first, _FIRST_BYTES)))
        return found.hexdigest()

    @cached_property
    def _unit_of(self) -> Mapping[str, Unit]:
        return {name: unit for unit in self.units for name in unit.ours}

    def _theirs(self, name: str) -> Tensor:
        stored = name.removeprefix(self._prefix)
        path = self.folder / self._files[stored]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path}: {stored} cannot be read: {error}") from None
        return tensor.to(torch.float32)

    def _check(self) -> None:
        found = dict(self._stored_shapes())
        wanted: set[str] = set()
        for unit in units(self.model, self.vocab_size):  # one after another: a wrong number of layers may be huge
            for name, shape in zip(unit.theirs, unit.their_shapes, strict=True):
                stored = name.removeprefix(self._prefix)
                self._check_tensor(stored, shape, found)
                wanted.add(stored)
        tied = ("lm_head.weight",) if self.model.tie_embeddings else ()
        others = [name for name in found if name not in wanted and name not in tied and not name.endswith(_BUFFERS)]
        if others:
            raise RunError(
                f"{self.folder}: {others[0]} has no place in {architecture_of(self.model).name} as it is computed here",
                "a model with other layers than its class cannot be read",
            )

    def _check_tensor(self, name: str, shape: tuple[int, ...], found: Mapping[str, tuple[int, ...]]) -> None:
        if name not in found:
            raise RunError(f"{self.folder}: has no tensor {name}", "is a weight file missing?")
        if found[name] != shape:
            raise RunError(
                f"{self.folder / self._files[name]}: {name} is {list(found[name])}, {CONFIG} describes {list(shape)}"
            )

    def _stored_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for file in sorted(set(self._files.values())):
            path = self.folder / file
            try:
                with safe_open(path, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  # not a dict
                        if self._files.get(name) != file:
                            raise RunError(f"{self.folder / INDEX}: does not name {file} as the file of {name}")
                        yield name, tuple(opened.get_slice(name).get_shape())
            except FileNotFoundError:
                raise RunError(f"{path}: no such file, which {INDEX} names") from None
            except (SafetensorError, OSError) as error:
                raise RunError(f"{path}: is not a whole safetensors file: {error}") from None


def is_foreign(folder: Path) -> bool:
    """Whether it is a Hugging Face folder rather than a run or a checkpoint of ours."""
    return (folder / CONFIG).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises RunError."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: must be a JSON object")
    return values


def _files_of_tensors(folder: Path) -> dict[str, str]:
    """The file of each tensor, by name."""
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(_is_plain(file) for file in places.values()):
            raise RunError(f"{folder / INDEX}: weight_map must name a file of this folder for each tensor")
        return {str(name): str(file) for name, file in places.items()}
    if (folder / SINGLE).is_file():
        try:
            with safe_open(folder / SINGLE, framework="pt") as opened:
                return dict.fromkeys(opened.keys(), SINGLE)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{folder / SINGLE}: is not a whole safetensors file: {error}") from None
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise RunError(
            f"{folder / pickled[0]}: pickled weights are not read, because a pickle can run code",
            "convert them to safetensors where you trust them",
        )
    raise RunError(f"{folder}: has no {SINGLE} and no {INDEX}")


def _is_plain(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file


def _missing_prefix(model: ModelConfig, names: Mapping[str, str]) -> str:
    """`transformer.` if GPT-2 weights were saved without their head, as those of the original are."""
    is_gpt2 = architecture_of(model) is GPT2
    return "transformer." if is_gpt2 and not any(name.startswith("transformer.") for name in names) else ""
