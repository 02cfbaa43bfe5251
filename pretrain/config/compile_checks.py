"""Settings that engine.compile=layers does not support.

Each was tried and breaks the graph of a layer. Dropout is different: its masks would come from the random number
generator of the compiler.
"""

from collections.abc import Iterator

from pretrain.config.errors import Problem
from pretrain.config.run import RunConfig


def compile_problems(config: RunConfig) -> Iterator[Problem]:
    """Every unsupported setting."""
    engine, model = config.engine, config.model
    if engine.compile != "layers":
        return
    for key, value, broken, reason, remedy in (
        (
            "engine.zero_stage",
            engine.zero_stage,
            engine.zero_stage == 3,
            "gathers parameters within a layer",
            "set engine.zero_stage=2 or less",
        ),
        (
            "model.experts.count",
            model.experts.count,
            model.experts.count > 0,
            "experts get other numbers of tokens",
            "",
        ),
        ("parallel.tp", config.parallel.tp, config.parallel.tp > 1, "ranks communicate within a layer", ""),
        ("parallel.cp", config.parallel.cp, config.parallel.cp > 1, "ranks communicate within a layer", ""),
        ("model.window", model.window, model.window is not None, "windows are not tried", ""),
        (
            "data.document_mask",
            config.data.document_mask,
            config.data.document_mask,
            "attention is called for each document, of another length each time",
            "",
        ),
        (
            "engine.recompute.granularity",
            engine.recompute.granularity,
            engine.recompute.granularity == "selective",
            "parts of a layer are recomputed separately",
            "set it to full or none",
        ),
        *(
            (
                f"model.{name}",
                getattr(model, name),
                getattr(model, name) > 0,
                "masks would be drawn in another way",
                "set it to 0",
            )
            for name in ("hidden_dropout", "attention_dropout")
        ),
    ):
        if broken:
            remedy = f"{remedy}, or engine.compile=elementwise" if remedy else "set engine.compile=elementwise"
            yield Problem(key, value, f"engine.compile=layers: {reason}", remedy)
