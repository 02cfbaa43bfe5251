"""Mutations of Muon and of the learning rates of parameter groups."""

from tests.support.mutation import Mutation

_PARITY = "tests/ranks/test_parity.py::test_equals_one_process_of_plain_torch"
_MUON = "optim=muon-muon.lr_ratio=0.5-embedding_lr_ratio=2-clip_grad_norm=0.1"
_SHARDED = (f"{_PARITY}[llama-zero3-tp2dp2-sp-m3-{_MUON}]",)
_WHOLE = (f"{_PARITY}[llama-zero0-dp2-m3-{_MUON}]",)
_OWNERS, _MATRICES = "pretrain/engine/optimizer/whole_matrices.py", "pretrain/model/matrices.py"

MUON = (
    Mutation(
        "muon-shards",
        "each tensor-parallel part is orthogonalised by itself",
        _OWNERS,
        "return [part.contiguous() for part in parts_of(name, whole, split, self._tp, model)]",
        "return [orthogonalised(part, iterations=5, dtype=dtype).mul_(scale_like_adam(whole)) for part in parts]",
        _SHARDED,
    ),
    Mutation(
        "muon-fused",
        "queries, keys and values are orthogonalised as one matrix",
        _MATRICES,
        "    if name.endswith(QKV):\n        return [part",
        "    if False:\n        return [part",
        _WHOLE,
    ),
    Mutation(
        "muon-gather",
        "an owner sees only the piece of the update that it holds itself",
        _OWNERS,
        "self._replicated and peer.dp_rank != self._peers[owner].dp_rank",
        "holder != owner",
        _SHARDED,
    ),
    Mutation(
        "muon-scale",
        "the size of an update depends on the shorter side of the matrix",
        "pretrain/optim/newton_schulz.py",
        "math.sqrt(max(matrix.shape))",
        "math.sqrt(min(matrix.shape))",
        _WHOLE,
    ),
    Mutation(
        "group-rate",
        "all parameters have the learning rate of the run",
        "pretrain/engine/zero.py",
        'lr * group["lr_scale"]',
        "lr",
        _WHOLE,
    ),
)
