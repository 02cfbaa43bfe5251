"""A new run is compared with the folder of another program that it starts with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.shards.manifest import TokenizerRecord
from data_pipeline.tokenizers.loading import load_tokenizer
from pretrain.checkpoint.foreign import open_foreign
from pretrain.checkpoint.init_from import find_fitting
from pretrain.config.errors import UserError
from pretrain.huggingface.architectures import config_json
from pretrain.huggingface.folder import ForeignWeights
from pretrain.huggingface.weights import units
from tests.support.tokenizers import END, byte_level_bpe
from tests.unit.huggingface.test_weights import SHAPES

OTHER = "<|next|>"


def folder_of(folder: Path, end_token: object) -> Path:
    """A folder whose tokenizer has two tokens that may end a document."""
    (folder / "tokenizer.json").write_text(byte_level_bpe(special=(END, OTHER)))
    size = load_tokenizer(folder / "tokenizer.json").vocab_size
    model = SHAPES["llama"]
    theirs = {
        name: torch.zeros(shape)
        for unit in units(model, size)
        for name, shape in zip(unit.theirs, unit.their_shapes, strict=True)
    }
    save_file(theirs, folder / "model.safetensors")
    config = config_json(model, vocab_size=size, end_token=0, dtype="float32")
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": end_token}))
    return folder


@pytest.mark.parametrize(("end_token", "eod"), [(0, END), (1, OTHER), ([1, 0], OTHER), (None, END)])
def test_the_end_token_of_the_model_ends_documents(end_token, eod, tmp_path):
    folder = folder_of(tmp_path, end_token)
    expected = load_tokenizer(folder / "tokenizer.json", eod=eod)
    assert open_foreign(folder).manifest["tokenizer_fingerprint"] == expected.fingerprint


def test_without_a_tokenizer_only_the_size_is_compared(tmp_path, caplog):
    folder = folder_of(tmp_path, 0)
    (folder / "tokenizer.json").unlink()
    weights = ForeignWeights(folder)
    data = TokenizerRecord(
        file="", kind="tiktoken", vocab_size=weights.vocab_size, eod_id=0, fingerprint="abc", settings_file=""
    )
    assert find_fitting(str(folder), weights.model, data).step == 0
    assert "has no tokenizer: whether its IDs are those of the data is not known" in caplog.text
    with pytest.raises(UserError, match=r"a vocabulary of \d+, the data has 9999"):
        find_fitting(str(folder), weights.model, replace(data, vocab_size=9999))
