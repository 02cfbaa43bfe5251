"""Count the bytes of parameters and gradients during a step: whole, in buckets, or this rank's share.

As deepspeed 0.19.8 does it. A weight's gradient is computed in the precision of the parameters; autograd converts it to
that of the sum, and adds it to the sum of earlier micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pretrain.planner.passes.meter import Meter

REDUCE_BUCKET_ELEMENTS = 50_000_000
"""Gradients are reduced in buckets of this size."""


@dataclass
class Gradients:
    """Gradients that stay whole until the step's reduction: ZeRO 0 and 1, and `grad_reduction=per_step`."""

    parameter: int
    """Bytes of an element of a parameter."""
    gradient: int
    """Bytes of an element of a sum."""
    gathers: bool
    """Whether each module's parameters are gathered when it is used, and freed after it."""
    bucket: int = 0
    """Bytes of a bucket that is allocated when the first gradient arrives, and stays."""
    later: bool = False
    """Whether the sums of an earlier micro-batch are there."""
    waiting: int = field(default=0, init=False)
    """Bytes of a tied head's gradient while it waits for the embedding's, which is added to it."""
    _has_bucket: bool = field(default=False, init=False)
    _held: int = field(default=0, init=False)

    def gather(self, meter: Meter, elements: int, *, several: bool = False) -> None:
        """`several`: parameters of one module, which are gathered into a buffer and copied out of it."""
        if self.gathers:
            size = elements * self.parameter
            meter.add(size)
            if several:
                meter.add(size, -size)

    def release(self, meter: Meter, elements: int) -> None:
        if self.gathers:
            meter.add(-elements * self.parameter)

    def release_at_end(self, elements: int) -> None:
        """The embedding's parameters stay gathered until the backward pass has ended."""
        self._held += elements

    def product(self, meter: Meter, elements: int) -> None:
        """A gradient is computed."""
        meter.add(elements * self.parameter)

    def convert(self, meter: Meter, elements: int) -> None:
        """To the precision of the sum."""
        if self.gradient != self.parameter:
            meter.add(elements * self.gradient, -elements * self.parameter)

    def arrive(self, meter: Meter, elements: int) -> None:
        """Add a gradient, which is already in memory, to the sum."""
        self.allocate_bucket(meter)
        if self.later:
            meter.add(-elements * self.gradient)

    def allocate_bucket(self, meter: Meter) -> None:
        if not self._has_bucket:
            meter.add(self.bucket)
            self._has_bucket = True

    def end_backward(self, meter: Meter) -> None:
        """The backward pass of a micro-batch has ended."""
        self.release(meter, self._held)
        self._held = 0


@dataclass
class BucketedGradients(Gradients):
    """ZeRO 2 and 3 with `grad_reduction=per_micro_batch`: reduced as soon as they fill a bucket."""

    contiguous: bool = False
    """Whether gradients are copied into the bucket. Otherwise a full bucket is copied at once."""
    own: int = 0
    """ZeRO 2: elements whose sums this rank keeps; those of the last rank arrive first, and stay until the end."""
    own_sums: int = 0
    """Bytes for this rank's part, allocated when the first bucket is reduced; a later micro-batch frees its own."""
    _pending: list[int] = field(default_factory=list, init=False)
    _staying: int = field(default=0, init=False)
    _arrived: int = field(default=0, init=False)
    _has_sums: bool = field(default=False, init=False)

    def arrive(self, meter: Meter, elements: int) -> None:
        self.allocate_bucket(meter)
        if self._pending and sum(self._pending) + elements > REDUCE_BUCKET_ELEMENTS:
            self._reduce(meter)
        if self.contiguous and elements <= REDUCE_BUCKET_ELEMENTS:
            meter.add(-elements * self.gradient)
        self._pending.append(elements)

    def end_backward(self, meter: Meter) -> None:
        self._reduce(meter)
        meter.add(-self._staying)
        if self.later and self._has_sums:
            meter.add(-self.own_sums)
            self._has_sums = False
        self._staying = self._arrived = 0
        if self._has_bucket:
            meter.add(-self.bucket)
            self._has_bucket = False
        super().end_backward(meter)

    def _reduce(self, meter: Meter) -> None:
        total = sum(self._pending)
        flat = total * self.gradient if len(self._pending) > 1 else 0
        meter.add(flat)
        if self.own_sums and not self._has_sums:
            meter.add(self.own_sums)
            self._has_sums = True
        meter.add(-flat)
        in_memory = self._pending if not self.contiguous else [n for n in self._pending if n > REDUCE_BUCKET_ELEMENTS]
        for elements in in_memory:
            if self._arrived < self.own:
                self._staying += elements * self.gradient
            else:
                meter.add(-elements * self.gradient)
            self._arrived += elements
        self._pending.clear()


@dataclass(frozen=True)
class GradientKind:
    """Settings that decide the bytes of gradients in the passes of a micro-batch: equal ones have equal passes."""

    parameter: int
    """Bytes of an element of a parameter."""
    gradient: int
    """Bytes of an element of a sum."""
    gathers: bool
    """Whether each module's parameters are gathered when it is used, and freed after it."""
    bucket: int = 0
    """Bytes of the bucket: without `in_buckets` the first micro-batch allocates it, and it stays."""
    in_buckets: bool = False
    """ZeRO 2 and 3 with `grad_reduction=per_micro_batch`."""
    contiguous: bool = False
    share: int = 0
    """ZeRO 2 in buckets: elements whose sums this rank keeps."""

    def make(self, later: bool) -> Gradients:
        """The gradients before a micro-batch: of the first of a step, or of a later one."""
        if not self.in_buckets:
            return Gradients(self.parameter, self.gradient, self.gathers, 0 if later else self.bucket, later)
        has_sums = self.contiguous or not later
        return BucketedGradients(
            self.parameter,
            self.gradient,
            self.gathers,
            self.bucket,
            later,
            contiguous=self.contiguous,
            own=0 if self.contiguous else self.share,
            own_sums=self.gradient * self.share if has_sums else 0,
        )


def reduction_peak(sizes: Sequence[int], limit: int) -> int:
    """Elements of the largest bucket of neighbours with at most `limit` elements together; one alone is not copied."""
    largest, bucket = 0, list[int]()
    for size in sizes:
        if bucket and sum(bucket) + size > limit:
            bucket = []
        bucket.append(size)
        if len(bucket) > 1:
            largest = max(largest, sum(bucket))
    return largest
