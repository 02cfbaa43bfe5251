"""The sizes of a micro-batch's tensors on one rank, in bytes."""

from dataclasses import dataclass

from pretrain.config.derived import micro_batch_size
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig


@dataclass(frozen=True)
class Sizes:
    """Bytes of one micro-batch's tensors on one rank, and what decides which there are."""

    model: ModelConfig
    width: int
    """Bytes of an element."""
    tokens: int
    """Tokens of this rank. Context-parallel ranks have parts of the samples."""
    samples: int
    tp: int
    parts: int
    """Into which sequence parallelism cuts what tensor-parallel ranks would all hold."""
    context: int
    """Ranks that share samples."""
    documents: bool
    recomputed: frozenset[str]
    """Parts of a layer that selective recomputation names."""
    ep: int = 1
    etp: int = 1

    def of(self, columns: int) -> int:
        """A matrix with this many columns for all tokens."""
        return self.tokens * columns * self.width

    @property
    def hidden(self) -> int:
        """Hidden states between the matrices."""
        return self.of(self.model.hidden_size) // self.parts

    @property
    def whole(self) -> int:
        return self.of(self.model.hidden_size)

    @property
    def norm(self) -> int:
        """Statistics of a norm of hidden states."""
        return self.tokens // self.parts * (8 if self.model.norm == "layernorm" else 4)


def sizes_of(config: RunConfig) -> Sizes:
    parallel, recompute = config.parallel, config.engine.recompute
    samples = micro_batch_size(config.train)
    return Sizes(
        model=config.model,
        width=4 if config.engine.precision == "fp32" else 2,
        tokens=samples * config.model.seq_length // parallel.cp,
        samples=samples,
        tp=parallel.tp,
        parts=parallel.tp if parallel.sp else 1,
        context=parallel.cp,
        documents=config.data.document_mask,
        recomputed=frozenset(recompute.modules if recompute.granularity == "selective" else ()),
        ep=parallel.ep,
        etp=parallel.etp,
    )
