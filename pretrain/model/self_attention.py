"""Self-attention of a layer with Megatron's parameters, whose heads keep no memory beside their own.

Shapes: s sequence, b batch, h hidden size, n query heads and g key/value heads of this rank, d head width.
"""

from collections.abc import Callable
from typing import Any

from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.mappings import all_gather_last_dim_from_tensor_parallel_region
from megatron.core.transformer import attention
from torch import Tensor

from pretrain.model.rotary import rotate


class SelfAttention(attention.SelfAttention):
    """Megatron's module also serves inference, and splits its heads in a way that keeps all of them in memory."""

    rotate: Callable[[Tensor, Tensor], Tensor] = staticmethod(rotate)
    """(heads, tables) -> heads; compile.py may replace it."""

    def __init__(self, *args: Any, rotates: bool = True, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.rotates = rotates

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, rotary_pos_emb: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden [s, b, h] -> [s, b, h], and the bias that the caller adds.

        `attention_mask`: the document starts of attention.py. `rotary_pos_emb`: the tables of rotary.py; None if
        positions are learned. A layer that does not rotate ignores them.
        """
        rotary_pos_emb = rotary_pos_emb if self.rotates else None
        query, key, value = self._heads(hidden, is_rotary=rotary_pos_emb is not None)
        if rotary_pos_emb is not None:
            query, key = self.rotate(query, rotary_pos_emb), self.rotate(key, rotary_pos_emb)
        if self.checkpoint_core_attention and self.training:
            context = tensor_parallel.checkpoint(self.core_attention, False, query, key, value, attention_mask)
        else:
            context = self.core_attention(query, key, value, attention_mask)
        output: tuple[Tensor, Tensor | None] = self.linear_proj(context)
        return output

    def _heads(self, hidden: Tensor, *, is_rotary: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [s, b, n, d], keys and values [s, b, g, d].

        A matrix has the heads group by group: queries, a key, a value. A view of one of them keeps the whole matrix in
        memory. So heads that are kept are copied, unless all three are kept as views.
        """
        mixed, _ = self.linear_qkv(hidden)
        groups, num_heads = self.num_query_groups_per_partition, self.num_attention_heads_per_partition
        per_group = num_heads // groups
        sharers = self.world_size // self.config.num_query_groups  # ranks that have queries of one group
        if sharers > 1:
            mixed = all_gather_last_dim_from_tensor_parallel_region(mixed)
            mixed = mixed.chunk(self.config.num_query_groups, -1)[self.tp_group.rank() // sharers]
        heads = mixed.unflatten(-1, (groups, per_group + 2, self.hidden_size_per_attention_head))
        query, key, value = heads.split([per_group, 1, 1], 3)
        query, key, value = query.flatten(2, 3), key.squeeze(3), value.squeeze(3)
        if sharers > 1:
            query = query.chunk(sharers, 2)[self.tp_group.rank() % sharers]

        are_kept = self.q_layernorm is not None or not is_rotary  # rotation keeps no heads
        are_views = sharers <= 1 and 1 in (groups, per_group)
        if not (are_kept and are_views):
            value = value.contiguous()
            if are_kept:
                query, key = query.contiguous(), key.contiguous()
        if self.q_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        return query, key, value
