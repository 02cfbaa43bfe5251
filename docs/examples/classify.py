"""Fine-tunes an exported model on two classes of text: code and prose of Python's standard library.

    python docs/examples/classify.py exports/quickstart

An export is an ordinary Hugging Face model, so this uses nothing of pretrain.
"""

import inspect
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODULES = ("argparse", "inspect", "typing", "tarfile", "statistics", "doctest", "datetime", "threading", "logging")
LENGTH, HELD_OUT, EPOCHS, BATCH = 32, 200, 3, 16


def lines() -> Iterator[tuple[str, int]]:
    """Lines of docstrings (1) and of code (0), without the signs that would give code away."""
    for name in MODULES:
        text = inspect.getsource(__import__(name))
        for number, part in enumerate(text.split('"""')):
            for line in part.splitlines():
                plain = "".join(letter for letter in line if letter not in "()[]{}=:#").strip()
                if len(plain) > 20:
                    yield plain, number % 2


def batches(examples: list[tuple[str, int]], tokenizer: Any) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    for first in range(0, len(examples), BATCH):
        texts, labels = zip(*examples[first : first + BATCH], strict=True)
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        yield inputs, torch.tensor(labels)


def main(folder: str) -> None:
    torch.manual_seed(0)
    examples = sorted(set(lines()))
    random.Random(0).shuffle(examples)
    classes = [[each for each in examples if each[1] == kind][:400] for kind in (0, 1)]
    mixed = [each for pair in zip(*classes, strict=False) for each in pair]
    held_out, training = mixed[:HELD_OUT], mixed[HELD_OUT:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        model.train()
        random.shuffle(training)
        for inputs, labels in batches(training, tokenizer):
            loss = model(**inputs, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(**inputs).logits.argmax(-1) == labels).sum()) for inputs, labels in batches(held_out, tokenizer)
        )
    base = max(sum(label == kind for _, label in held_out) for kind in (0, 1)) / len(held_out)
    accuracy = right / len(held_out)
    print(f"{len(training)} examples; accuracy on {len(held_out)} others {accuracy:.2f}, base rate {base:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
