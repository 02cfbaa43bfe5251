"""Configurations whose peaks are measured: families, sizes, ZeRO stages and modes, recomputation, layouts, offload."""

import itertools
from collections.abc import Iterator

from pretrain.planner.memory import Modes
from tests.support.peaks import Case

GPT = ("model=gpt3_125m", "tokenizer.vocab_size=8000", "model.num_layers=4", "model.seq_length=512")
LLAMA = ("model=llama_1b", "tokenizer.vocab_size=8000", "model.num_layers=2", "model.seq_length=512")
QWEN = (*LLAMA, "model.qk_norm=true", "model.tie_embeddings=false")
EXPERTS = (*LLAMA, "model.experts.count=8", "model.experts.ffn_hidden_size=1024", "model.experts.sequence_loss=0.01")
STEP, EACH = Modes("per_step", "per_step"), Modes("per_micro_batch", "per_micro_batch")


def small() -> list[Case]:
    """A few seconds."""
    return [
        _case("gpt", GPT, 0),
        _case("llama", LLAMA, 1, dp=4),
        _case("gpt", GPT, 2, dp=4, modes=EACH),
        _case("qwen", QWEN, 3, dp=4, modes=STEP),
        _case("recompute", LLAMA, 0, "engine.recompute.granularity=full"),
        _case("documents", LLAMA, 0, "data.document_mask=true"),
        _case("tensor parallel", LLAMA, 1, "parallel.tp=2", "parallel.sp=true"),
        _case("shared samples", LLAMA, 1, "parallel.cp=4"),
        _case("experts", EXPERTS, 3, dp=4),
        _case("pipeline", GPT, 1, "parallel.pp=4", samples=16, rank=2),
    ]


def cases() -> list[Case]:
    return [*_zero(), *_activations(), *_layouts(), *_experts(), *_shared(), *_offload(), *_sizes()]


def _case(
    family: str,
    model: tuple[str, ...],
    zero: int,
    *more: str,
    dp: int = 1,
    modes: Modes = STEP,
    samples: int = 6,
    micro: int = 2,
    rank: int | None = None,
) -> Case:
    """The last rank of those that are not asked for: it has the most where ranks differ."""
    ranks = dp
    for text in more:
        key, _, value = text.partition("=")
        if key in ("parallel.tp", "parallel.pp", "parallel.cp"):
            ranks *= int(value)
    batch = (f"train.micro_batch_size={micro}", f"train.global_batch_size={samples * dp}")
    overrides = (*model, f"engine=zero{zero}_bf16", *batch, *more)
    return Case(family, overrides, ranks, ranks - 1 if rank is None else rank, modes)


def _zero() -> Iterator[Case]:
    """Every ZeRO stage and both modes, in both precisions of sums."""
    modes = {0: [STEP], 1: [STEP], 2: [STEP, Modes("per_micro_batch", "per_step")]}
    modes[3] = [Modes(*pair) for pair in itertools.product(("per_step", "per_micro_batch"), repeat=2)]  # type: ignore[arg-type]
    for zero, chosen in modes.items():
        for mode, dp in itertools.product(chosen, (1, 4)):
            yield _case("GPT", GPT, zero, dp=dp, modes=mode)
            yield _case("Llama", LLAMA, zero, dp=dp, modes=mode)
        yield _case("fp32", GPT, zero, "engine.precision=fp32", dp=4, modes=chosen[-1])
        yield _case("sums in 16 bits", GPT, zero, "engine.grad_accum_dtype=same", dp=4, modes=chosen[-1])
        yield _case("qk_norm, untied", QWEN, zero, dp=4, modes=chosen[-1])


def _experts() -> Iterator[Case]:
    shared = (*EXPERTS, "model.experts.shared_ffn_hidden_size=1024", "model.experts.dense_layers=1")
    for zero, dp in ((0, 1), (1, 4), (3, 4)):
        yield _case("experts", EXPERTS, zero, dp=dp)
        yield _case("experts, micro-batches of six", shared, zero, dp=dp, micro=6, samples=12)
    yield _case("experts of all ranks", EXPERTS, 1, "parallel.tp=2", "parallel.sp=true")
    yield _case("experts, sequence parallel", shared, 3, "parallel.tp=2", "parallel.sp=true", dp=2)
    yield _case("experts, recomputation", shared, 0, "engine.recompute.granularity=full")


def _activations() -> Iterator[Case]:
    recompute = "engine.recompute."
    for family, model in (("GPT", GPT), ("Llama", LLAMA)):
        for more in (
            (f"{recompute}granularity=selective", f"{recompute}modules=[mlp]"),
            (f"{recompute}granularity=selective", f"{recompute}modules=[core_attn,mlp]"),
            (f"{recompute}granularity=full",),
            (f"{recompute}granularity=full", f"{recompute}num_layers=2"),
            (f"{recompute}granularity=full", f"{recompute}method=block", f"{recompute}num_layers=1"),
        ):
            yield _case("recomputation", model, 0, *more)
        for entropy in ("plain", "in_place", "chunked"):
            yield _case(f"{family}, cross-entropy", model, 0, f"engine.cross_entropy={entropy}", micro=6)
        for micro in (1, 2):
            yield _case("documents", model, 0, "data.document_mask=true", micro=micro)
    yield _case("dropout", GPT, 0, "model.hidden_dropout=0.1")
    yield _case("GQA off", LLAMA, 0, "model.num_query_groups=null")
    yield _case("GQA off", (*LLAMA, "model.qk_norm=true"), 0, "model.num_query_groups=null")


def _layouts() -> Iterator[Case]:
    for model, sp, entropy in itertools.product((GPT, LLAMA), ("false", "true"), ("plain", "in_place", "chunked")):
        tensor = ("parallel.tp=4", f"parallel.sp={sp}", f"engine.cross_entropy={entropy}")
        yield _case("tensor parallel", model, 1, *tensor, rank=0)
    deep = ("model=gpt3_125m", "tokenizer.vocab_size=8000", "model.num_layers=8", "model.seq_length=512")
    for pp, vp, number in ((2, 1, 4), (4, 1, 8), (4, 1, 2), (2, 2, 4), (4, 2, 8)):
        for rank in sorted({0, pp // 2, pp - 1}):
            more = f"parallel.pp={pp}", f"parallel.vp={vp}"
            yield _case("pipeline", deep, 1, *more, samples=2 * number, rank=rank)
    yield _case("all at once", LLAMA, 3, "parallel.tp=2", "parallel.sp=true", "parallel.pp=2", dp=4, modes=EACH)
    yield _case("all at once", LLAMA, 1, "parallel.tp=2", "parallel.sp=true", "parallel.pp=2", dp=4)


def _shared() -> Iterator[Case]:
    for model, cp in itertools.product((GPT, LLAMA), (2, 4)):
        yield _case("shared samples", model, 0, f"parallel.cp={cp}", "model.seq_length=2048", micro=1, samples=2)
    yield _case("shared samples", LLAMA, 1, "parallel.cp=2", "parallel.tp=2", "parallel.sp=true")
    recompute = "engine.recompute."
    core = (f"{recompute}granularity=selective", f"{recompute}modules=[core_attn]")
    yield _case("shared samples", LLAMA, 1, "parallel.cp=2", *core, "model.seq_length=2048")
    yield _case("shared samples", QWEN, 0, "parallel.cp=2", f"{recompute}granularity=full", "model.seq_length=2048")
    for more in (("model.window=128",), ("model.window=128", "parallel.cp=2")):
        yield _case("windows", LLAMA, 0, *more, "model.seq_length=2048", micro=1, samples=2)
    for micro in (1, 2):
        yield _case("shared samples", LLAMA, 0, "parallel.cp=2", "data.document_mask=true", micro=micro)


def _offload() -> Iterator[Case]:
    offload = "engine.offload.optimizer=cpu"
    for zero, modes in ((1, STEP), (2, STEP), (2, EACH), (3, STEP), (3, EACH)):
        yield _case("offload", GPT, zero, offload, dp=4, modes=modes)
    yield _case("offload", GPT, 3, offload, "engine.offload.params=cpu", dp=4, modes=EACH)


def _sizes() -> Iterator[Case]:
    """Published models in full: nothing is computed."""
    for name, micro, dp, zero in (
        ("gpt3_1.3b", 4, 8, 1),
        ("gpt3_6.7b", 2, 16, 2),
        ("gpt3_6.7b", 1, 16, 3),
        ("llama_3b", 1, 8, 1),
        ("llama_8b", 1, 16, 3),
        ("llama_8b", 1, 16, 1),
    ):
        modes = STEP if zero < 3 else EACH
        model = (f"model={name}", "tokenizer.vocab_size=128000" if "llama" in name else "tokenizer.vocab_size=50257")
        yield _case("published sizes", model, zero, dp=dp, modes=modes, samples=2 * micro, micro=micro)
