"""The output layer, which with engine.cross_entropy=chunked computes the loss too."""

from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from pretrain.model.chunked_cross_entropy import Columns, chunked_cross_entropy
from pretrain.model.cross_entropy import Passes


class OutputLayer(ColumnParallelLinear):
    """Megatron's output layer. Losses are results of the same call, because ZeRO-3 gathers the weight for the call.

    Shapes: s sequence (s / tp for sequence parallelism), b batch, h hidden size, v padded vocabulary.
    """

    multiplier: float = 1.0
    """Factor of the logits (scaling.py)."""

    def __init__(self, config: TransformerConfig, vocab_size: int, **settings: Any) -> None:
        super().__init__(
            config.hidden_size, vocab_size, config=config, init_method=config.init_method, bias=False, **settings
        )

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        labels: Tensor | None = None,
        real: int = 0,
        passes: Passes | None = None,
    ) -> tuple[Tensor, None]:
        """input_ [s, b, h] -> logits [s, b, v / tp]; for labels [s, b] the loss of each token [s, b] instead.

        `weight`: the embedding's, if it is tied on this stage. `real`: how many of this rank's columns are tokens.
        """
        if self.multiplier != 1.0:
            input_ = input_ * self.multiplier
        if labels is None:
            logits, _ = super().forward(input_, weight, runtime_gather_output)
            return logits, None
        assert passes is not None
        columns = Columns(
            first=self.tp_group.rank() * self.output_size_per_partition,
            real=real,
            group=self.tp_group if self.tp_group.size() > 1 else None,
            cut_sequence=self.sequence_parallel,
        )
        return chunked_cross_entropy(input_, self.weight if weight is None else weight, labels, columns, passes), None
