"""How the model is split over ranks: Megatron's degrees; the data-parallel size is what they leave of the world."""

import itertools
import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Tensor, sequence, context and pipeline parallelism. The data-parallel size follows from the number of ranks."""

    tp: int
    """Tensor-parallel size: number of ranks that each matrix is split over (Shoeybi et al. 2019)."""
    sp: bool
    """Sequence parallelism: activations between the matrices, which tensor-parallel ranks would duplicate, are split
    along the sequence (Korthikanti et al. 2022). No effect with tp=1."""
    pp: int
    """Pipeline-parallel size: number of stages that the layers are split into (1F1B schedule, Narayanan et al.
    2021)."""
    vp: int
    """Number of chunks of layers on each stage, for the interleaved schedule (Narayanan et al. 2021). 1: not
    interleaved."""
    pp_layout: str | None
    """Contents of each stage in Megatron's notation: E embedding, t layer, L output layer and loss, | between stages,
    *n repeat, ( ) group, as in `Ett|tttL`. It names pp * vp chunks. null: equal numbers of layers."""
    cp: int = 1
    """Context-parallel size: number of ranks that each sample is split over. Each of them has two parts of the sample,
    and gathers the keys and values of the others in each layer."""
    ep: int = 1
    """Expert-parallel size: number of parts that the experts of a layer are divided into."""
    etp: int = 1
    """Number of ranks that the inner width of each expert is split over. ep * etp ranks hold the experts of a layer
    once; they are tensor-parallel ranks first, then data-parallel ones."""


@dataclass(frozen=True)
class Chunk:
    """The part of the model in one pipeline chunk: layers `first` to `first + num_layers`."""

    first: int
    num_layers: int
    embedding: bool
    head: bool

    @property
    def layers(self) -> range:
        """The numbers of the layers, counted over all stages."""
        return range(self.first, self.first + self.num_layers)


class LayoutError(ValueError):
    """An invalid pipeline layout. The text gives the reason."""


def stage_chunks(parallel: ParallelConfig, num_layers: int) -> list[Chunk]:
    """The chunks in the order in which data flows; chunk i runs on stage i % pp, as its part i // pp.

    Raises LayoutError where the layers don't divide or the layout is not one of this model.
    """
    wanted = parallel.pp * parallel.vp
    if parallel.pp_layout is None:
        if num_layers % wanted:
            raise LayoutError(f"{num_layers} layers don't divide into {wanted} equal chunks")
        each = num_layers // wanted
        letters = ["t" * each] * wanted
        letters[0] = "E" + letters[0]
        letters[-1] += "L"
    else:
        letters = expand_layout(parallel.pp_layout)
        if len(letters) != wanted:
            raise LayoutError(f"it has {len(letters)} chunks, pp * vp is {wanted}")
    flat = "".join(letters)
    if not re.fullmatch("Et*L", flat):
        raise LayoutError("it must begin with one E, end with one L and have only t between")
    if flat.count("t") != num_layers:
        raise LayoutError(f"it has {flat.count('t')} layers, the model {num_layers}")
    if "" in letters:
        raise LayoutError(f"chunk {letters.index('')} of it is empty")
    chunks, first = [], 0
    for content in letters:
        layers = content.count("t")
        chunks.append(Chunk(first, layers, "E" in content, "L" in content))
        first += layers
    return chunks


def even_layout(num_layers: int, num_chunks: int) -> str | None:
    """A pp_layout whose chunks hold equal work as far as that goes, embedding and head counted as one layer each, as
    `Et*2|(t*3|)*14t*2L`; None where there are fewer layers than chunks."""
    if num_chunks < 2 or num_layers < num_chunks:
        return None
    # The last chunks of all take what an equal cut leaves over, the ends one layer less for their tables.
    each, over = divmod(num_layers + 2, num_chunks)
    sizes = [each + (1 if i >= num_chunks - over else 0) for i in range(num_chunks)]
    sizes[0] -= 1
    sizes[-1] -= 1
    if sizes[0] == 0:  # three chunks for four items: an end would hold its table alone
        sizes[0], sizes[sizes.index(max(sizes))] = 1, max(sizes) - 1
    texts = [_repeat(size) for size in sizes]
    texts[0] = "E" + texts[0]
    texts[-1] += "L"
    inner = "".join(
        f"({text}|)*{count}" if count > 1 else f"{text}|"
        for text, count in ((text, len(list(same))) for text, same in itertools.groupby(texts[1:-1]))
    )
    return f"{texts[0]}|{inner}{texts[-1]}"


def _repeat(count: int) -> str:
    return "t" * count if count < 4 else f"t*{count}"


def expand_layout(text: str) -> list[str]:
    """`Et*2|(t|)*2L` -> [Ett, t, t, L]; raises LayoutError for anything but E t L | ( ) *n and commas."""
    plain = re.sub(r"[,\s]", "", text)
    if re.search(r"\d{5}", plain):
        raise LayoutError("repeat counts must be below 10,000")
    # Single letters first: a group may hold such repeats, as in (t*3|)*14.
    for pattern in (r"([EtL|])\*([0-9]+)", r"\(([EtL|]*)\)\*([0-9]+)"):
        plain = re.sub(pattern, lambda match: match.group(1) * int(match.group(2)), plain)
    wrong = re.search(r"[^EtL|]", plain)
    if wrong:
        raise LayoutError(f"unexpected {wrong.group()!r} (the symbols are E t L | ( ) *n)")
    return plain.split("|")
