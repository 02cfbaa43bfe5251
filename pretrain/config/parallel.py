"""How the model is split over ranks: Megatron's degrees; the data-parallel size is what they leave of the world."""

import itertools
import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Tensor, sequence and pipeline parallelism."""

    tp: int
    """Tensor-parallel size: each matrix is cut over this number of ranks (Shoeybi et al. 2019)."""
    sp: bool
    """Sequence parallelism: what tensor-parallel ranks would hold twice between the matrices is cut along the sequence
    (Korthikanti et al. 2022); without effect at tp=1."""
    pp: int
    """Pipeline-parallel size: the layers are cut into this number of stages (1F1B, Narayanan et al. 2021)."""
    vp: int
    """Chunks of layers on each stage, interleaved (Narayanan et al. 2021); 1: one."""
    pp_layout: str | None
    """What each stage holds, in order, as in Megatron: E embedding, t layer, L head and loss, | between stages, *n
    repeats, ( ) groups; `Ett|tttL`. pp * vp stages. null: the layers in equal numbers."""


@dataclass(frozen=True)
class Chunk:
    """What one stage holds of the model: layers `first` to `first + num_layers`."""

    first: int
    num_layers: int
    embedding: bool
    head: bool


class LayoutError(ValueError):
    """A pipeline layout that cannot be; the text says why."""


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
        raise LayoutError("a repeat of 10,000 or more is not understood in it")
    # Single letters first: a group may hold such repeats, as in (t*3|)*14.
    for pattern in (r"([EtL|])\*([0-9]+)", r"\(([EtL|]*)\)\*([0-9]+)"):
        plain = re.sub(pattern, lambda match: match.group(1) * int(match.group(2)), plain)
    wrong = re.search(r"[^EtL|]", plain)
    if wrong:
        raise LayoutError(f"{wrong.group()!r} is not understood in it")
    return plain.split("|")
