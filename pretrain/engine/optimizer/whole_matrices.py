"""Orthogonalise matrices of which each rank of a pipeline stage holds a piece (ZeRO, tensor parallelism).

Each matrix has one owner among the ranks of the stage, so that they divide the work. An all-to-all brings the pieces of
the update to the owner, another one brings the pieces of the result back. Both have fp32 and are equal in size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config.model import ModelConfig
from pretrain.config.optim import MuonConfig
from pretrain.distributed.groups import ranks_of_stage
from pretrain.engine.optimizer.base import DeepSpeedOptimizer
from pretrain.model.matrices import joined, matrices_of, parts_of, whole_of
from pretrain.optim.muon import MuonAdamW
from pretrain.optim.newton_schulz import orthogonalised, scale_like_adam
from pretrain.optim.update import is_layer_matrix


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `end` of a parameter's flat tensor-parallel part. They are in the master buffer `master`."""

    name: str
    master: int
    """Index of the buffer. ZeRO-0 has a buffer for each parameter and updates all at once: 0 for all."""
    start: int
    end: int


@dataclass(frozen=True)
class Peer:
    """A rank of the stage."""

    tp_rank: int
    dp_rank: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Shape:
    """A parameter of the stage."""

    local: torch.Size
    split: int | None
    master: int


def share_matrices(optimizer: DeepSpeedOptimizer, model: ModelConfig, muon: MuonConfig) -> None:
    """Let Muon update whole matrices; AdamW is left as it is. Call it on all ranks."""
    adamw = optimizer.adamw
    if isinstance(adamw, MuonAdamW):
        adamw.orthogonalise = whole = WholeMatrices(optimizer, model, muon)
        adamw.muon_masters = whole.masters


class WholeMatrices:
    """The `orthogonalise` of `MuonAdamW`. Call it on all ranks of the stage together."""

    def __init__(self, optimizer: DeepSpeedOptimizer, model: ModelConfig, muon: MuonConfig) -> None:
        groups, local, self._model, self._muon = optimizer.groups, optimizer.stage.local, model, muon
        self._tp, self._replicated = groups.layout.tp, optimizer.replicated
        self._index = {id(master): i for i, master in enumerate(optimizer.masters())}
        held = [
            (Piece(each.name, self._at(item.master), item.start, item.start + item.last - item.first), item)
            for item in optimizer.partition
            if is_layer_matrix((each := local[item.parameter]).name, len(each.shape))
        ]
        self._own = dict(held)
        self.masters = frozenset(id(item.master) for item in self._own.values())
        own = Peer(groups.tp_rank, groups.dp_rank, tuple(self._own))
        self._group = ranks_of_stage()
        self._rank, peers = dist.get_rank(self._group), [own] * dist.get_world_size(self._group)
        if len(peers) > 1:
            dist.all_gather_object(peers, own, group=self._group)
        self._peers: Sequence[Peer] = peers
        masters = {piece.name: piece.master for peer in peers for piece in peer.pieces}
        self._shapes = {
            each.name: Shape(each.shape, each.split, masters[each.name])
            for each in sorted(local.values(), key=lambda each: each.name)
            if each.name in masters
        }
        self._owners = dict(self._divide())
        self.runs = 0
        """Matrices that this rank has orthogonalised."""

    def __call__(self, masters: Sequence[Tensor], updates: Sequence[Tensor]) -> list[Tensor]:
        """Masters that hold nothing but padding take part too: all ranks of the stage must pass the same buffers."""
        batch = {self._at(master) for master in masters}
        flat = {id(master): update.view(-1) for master, update in zip(masters, updates, strict=True)}
        asked = [name for name, shape in self._shapes.items() if shape.master in batch]
        ours = [self._pieces(rank, self._rank, asked, arriving=True) for rank in range(len(self._peers))]
        theirs = [self._pieces(self._rank, rank, asked, arriving=True) for rank in range(len(self._peers))]
        outgoing = [[self._own[piece].of(flat[id(self._own[piece].master)]) for piece in to] for to in theirs]
        parts = {
            name: [updates[0].new_empty(self._shapes[name].local) for _ in range(self._tp)]
            for name in asked
            if self._owners[name] == self._rank
        }
        self._exchange(outgoing, [list(self._of(parts, rank, pieces)) for rank, pieces in enumerate(ours)])
        for name in parts:
            parts[name] = self._orthogonalised(name, parts[name])
        results = [torch.zeros_like(update) for update in updates]
        back = {id(master): result.view(-1) for master, result in zip(masters, results, strict=True)}
        held = [self._pieces(rank, self._rank, asked, arriving=False) for rank in range(len(self._peers))]
        wanted = [self._pieces(self._rank, rank, asked, arriving=False) for rank in range(len(self._peers))]
        self._exchange(
            [list(self._of(parts, rank, pieces)) for rank, pieces in enumerate(held)],
            [[self._own[piece].of(back[id(self._own[piece].master)]) for piece in to] for to in wanted],
        )
        return results

    def _pieces(self, holder: int, owner: int, asked: Sequence[str], *, arriving: bool) -> list[Piece]:
        """The pieces of `holder` in matrices of `owner`. At ZeRO-0 all replicas hold them, and one sends them."""
        peer = self._peers[holder]
        if arriving and self._replicated and peer.dp_rank != self._peers[owner].dp_rank:
            return []
        wanted = {name for name in asked if self._owners[name] == owner}
        return [piece for piece in peer.pieces if piece.name in wanted]

    def _of(self, parts: dict[str, list[Tensor]], rank: int, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """Views of a rank's pieces in the parameters that this rank owns."""
        for piece in pieces:
            yield parts[piece.name][self._peers[rank].tp_rank].view(-1)[piece.start : piece.end]

    def _exchange(self, sent: Sequence[Sequence[Tensor]], received: Sequence[Sequence[Tensor]]) -> None:
        """Send lists of tensors to each rank, and write what arrives into the tensors of `received`."""
        outgoing = torch.cat([tensor for to in sent for tensor in to] or [torch.empty(0)])
        into = [tensor for source in received for tensor in source]
        sizes = [tensor.numel() for tensor in into]
        incoming = outgoing
        if len(sent) > 1:
            device = next((tensor.device for to in (*sent, *received) for tensor in to), outgoing.device)
            outgoing = outgoing.to(device, torch.float32)
            incoming = torch.empty(sum(sizes), device=device)
            arriving, leaving = ([_elements(each) for each in lists] for lists in (received, sent))
            dist.all_to_all_single(incoming, outgoing, arriving, leaving, group=self._group)
        for tensor, arrived in zip(into, incoming.split(sizes), strict=True):
            tensor.copy_(arrived)

    def _orthogonalised(self, name: str, parts: list[Tensor]) -> list[Tensor]:
        """The tensor-parallel parts of a parameter, whose matrices are orthogonalised apart."""
        model, split = self._model, self._shapes[name].split
        dtype = torch.bfloat16 if self._muon.precision == "bf16" else torch.float32
        matrices = []
        for matrix in matrices_of(name, whole_of(name, parts, split, model), model):
            self.runs += 1
            update = orthogonalised(matrix, iterations=self._muon.iterations, dtype=dtype)
            matrices.append(update.mul_(scale_like_adam(matrix)))
        whole = joined(name, matrices, model)
        return [part.contiguous() for part in parts_of(name, whole, split, self._tp, model)]

    def _divide(self) -> Iterator[tuple[str, int]]:
        """An owner for each parameter: the largest first, each to the rank that has least work so far."""
        work = [0] * len(self._peers)
        for name, shape in sorted(self._shapes.items(), key=lambda item: (-_work(item[1].local), item[0])):
            owner = work.index(min(work))
            work[owner] += _work(shape.local)
            yield name, owner

    def _at(self, master: Tensor) -> int:
        return 0 if self._replicated else self._index[id(master)]


def _elements(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _work(shape: torch.Size) -> int:
    """Proportional to the multiplications, apart from what is equal for all matrices of a model."""
    return min(shape) * shape.numel()
