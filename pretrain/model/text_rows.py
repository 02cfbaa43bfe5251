"""Texts that grow together, one row each, and the keys and values of their tokens in one layer (the KV cache).

Shapes: b rows, t new tokens (rows with fewer are padded on the right), n query heads, g key/value heads, d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Placed:
    """The new tokens of all rows, and what their queries see."""

    tokens: Tensor
    """[b, t]"""
    counts: tuple[int, ...]
    """Tokens of each row; what is behind them is padding."""
    places: Tensor
    """Place [b, t] of each token in its row."""
    positions: Tensor
    """Position [b, t] of each token in its document."""
    end: int
    """Keys from this place on are not read."""
    first: int | None
    """The common place of the first new tokens; None if rows have different lengths."""
    mask: "Tensor | bool | None"
    """Which keys each query sees [b, 1, t, end]; True: those up to its own place; None: all."""

    def mask_within(self, window: int | None) -> "Tensor | bool | None":
        """The mask of a layer whose queries see so many tokens."""
        if window is None or window >= self.end:
            return self.mask
        keys = torch.arange(self.end, device=self.places.device)
        first = torch.maximum(self.places - self.positions, self.places - window + 1)
        return ((keys <= self.places[:, :, None]) & (keys >= first[:, :, None]))[:, None]


class TextRows:
    """The lengths of some texts in caches of `capacity` tokens."""

    def __init__(self, rows: int, capacity: int, document_end: int | None, device: torch.device) -> None:
        """`document_end`: the token that ends a document, if attention stays within documents; else None."""
        self.capacity, self.document_end, self.device = capacity, document_end, device
        self.lengths = [0] * rows
        self.starts = [0] * rows
        """The place where the last document of each row starts."""
        self.ended = [False] * rows
        """Whether the last token of each row ended its document."""

    def add(self, tokens: Sequence[Sequence[int]], multiple_of: int = 1) -> Placed:
        """Append tokens to each row (at least one); t is rounded up to a multiple of `multiple_of`.

        Raises ValueError if a row has no room for them.
        """
        counts = tuple(len(row) for row in tokens)
        if min(counts) < 1 or any(a + b > self.capacity for a, b in zip(self.lengths, counts, strict=True)):
            raise ValueError(f"rows of {self.lengths} tokens cannot get {counts} more in {self.capacity}")
        longest = -(-max(counts) // multiple_of) * multiple_of
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens], device=self.device)
        first = torch.tensor(self.lengths, device=self.device)[:, None]
        places = (first + torch.arange(longest, device=self.device)).clamp_(max=self.capacity - 1)
        end = min(max(self.lengths) + longest, self.capacity)
        is_even = len(set(self.lengths)) == 1
        starts = self._document_starts(padded, places, counts)
        mask = self._mask(places, starts, end, is_even)
        common = self.lengths[0] if is_even and self.lengths[0] + longest <= self.capacity else None
        self.lengths = [a + b for a, b in zip(self.lengths, counts, strict=True)]
        return Placed(padded, counts, places, places - starts, end, common, mask)

    def selected(self, rows: Sequence[int]) -> "TextRows":
        """These rows alone, in this order."""
        chosen = TextRows(len(rows), self.capacity, self.document_end, self.device)
        for name in ("lengths", "starts", "ended"):
            values = getattr(self, name)
            setattr(chosen, name, [values[row] for row in rows])
        return chosen

    def replace(self, rows: Sequence[int], part: "TextRows") -> None:
        """Put the rows of `part` in place of `rows`."""
        for name in ("lengths", "starts", "ended"):
            for place, row in enumerate(rows):
                getattr(self, name)[row] = getattr(part, name)[place]

    def _document_starts(self, tokens: Tensor, places: Tensor, counts: Sequence[int]) -> Tensor:
        """The place [b, t] at which the document of each new token starts; 0 if attention crosses documents.

        Repeated end tokens belong to the document that the first of them ends, as in training.
        """
        if self.document_end is None:
            return torch.zeros_like(places)
        ends = tokens == self.document_end
        before = torch.cat((torch.tensor(self.ended, device=self.device)[:, None], ends[:, :-1]), 1)
        starts = torch.tensor(self.starts, device=self.device)[:, None].expand_as(places)
        found = torch.where(before & ~ends, places, starts).cummax(1).values
        last = last_places(counts, self.device)
        self.starts, self.ended = found[last].tolist(), ends[last].tolist()
        return found

    def _mask(self, places: Tensor, starts: Tensor, end: int, is_even: bool) -> "Tensor | bool | None":
        if self.document_end is None and is_even:
            if places.shape[1] == 1:
                return None
            if self.lengths[0] == 0:
                return True
        keys = torch.arange(end, device=self.device)
        return ((keys <= places[:, :, None]) & (keys >= starts[:, :, None]))[:, None]


def last_places(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the last new token of each row in a tensor [b, t, ...]."""
    return torch.arange(len(counts), device=device), torch.tensor(counts, device=device) - 1


class LayerCache:
    """The keys and values [b, g, capacity, d] of one layer."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def attend(self, query: Tensor, key: Tensor, value: Tensor, placed: Placed, window: int | None = None) -> Tensor:
        """Keep the new keys and values [b, g, t, d]; attention of the queries [b, n, t, d] over all: [b, n, t, d].

        A single query sees all keys: with is_causal torch would let it see the first alone.
        """
        if placed.first is not None:
            own = slice(placed.first, placed.first + query.shape[2])
            self.keys[:, :, own], self.values[:, :, own] = key, value
        else:
            counts = torch.tensor(placed.counts, device=query.device)[:, None]
            real = torch.arange(query.shape[2], device=query.device) < counts
            rows = torch.arange(len(placed.counts), device=query.device)[:, None].expand_as(placed.places)
            index = rows[real], placed.places[real]
            self.keys.transpose(1, 2)[index] = key.transpose(1, 2)[real]
            self.values.transpose(1, 2)[index] = value.transpose(1, 2)[real]
        keys, values = self.keys[:, :, : placed.end], self.values[:, :, : placed.end]
        grouped = keys.shape[1] != query.shape[1]
        seen = placed.mask_within(window)
        if seen is True:
            return scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=grouped)
        mask = seen if isinstance(seen, Tensor) else None
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=grouped)

    def selected(self, rows: Sequence[int]) -> "LayerCache":
        index = list(rows)
        return LayerCache(self.keys[index], self.values[index])

    def replace(self, rows: Sequence[int], part: "LayerCache") -> None:
        index = list(rows)
        self.keys[index], self.values[index] = part.keys, part.values
