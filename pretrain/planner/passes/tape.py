"""Autograd without tensors: it counts the bytes that operations allocate, keep for the backward pass, and free.

Operations run backward in the reverse of their order, as torch's do: a gradient is freed once its operation is done,
and with it what the operation kept; two gradients of one tensor are summed into a third.
"""

from collections.abc import Callable, Sequence

from pretrain.planner.passes.meter import Meter


class Storage:
    """Memory of one or more tensors."""

    __slots__ = ("holders", "size")

    def __init__(self, size: int) -> None:
        self.size, self.holders = size, 1


class Tensor:
    """A tensor, by its size in bytes. Views share a storage."""

    __slots__ = ("gradient", "size", "storage")

    def __init__(self, storage: Storage, size: int) -> None:
        self.storage, self.size = storage, size
        self.gradient: Storage | None = None


class Tape:
    """Operations on tensors. `records`: whether a backward pass follows."""

    def __init__(self, meter: Meter, *, records: bool) -> None:
        self.meter, self.records = meter, records
        self._nodes: list[tuple[Sequence[Tensor], Callable[[list[Storage]], None]]] = []

    def new(self, size: int) -> Tensor:
        self.meter.add(size)
        return Tensor(Storage(size), size)

    def hold(self, tensor: Tensor) -> Tensor:
        """Another holder of the same memory."""
        tensor.storage.holders += 1
        return tensor

    def free(self, *tensors: Tensor) -> None:
        """The variables go out of scope; memory that nothing else holds is freed."""
        for tensor in tensors:
            self.drop(tensor.storage)

    def drop(self, storage: Storage) -> None:
        storage.holders -= 1
        if not storage.holders:
            self.meter.add(-storage.size)

    def view(self, tensor: Tensor) -> Tensor:
        """The same memory in another shape; its gradient is the tensor's."""
        result = Tensor(self.hold(tensor).storage, tensor.size)
        self.record((result,), lambda gradients: self.give(tensor, gradients[0]))
        return result

    def op(
        self,
        inputs: Sequence[Tensor],
        size: int,
        *,
        keeps: Sequence[Tensor] = (),
        kept_bytes: int = 0,
        scratch: int = 0,
    ) -> Tensor:
        """One operation: its result, and the gradients of its inputs in the backward pass.

        `keeps`: tensors for the backward pass; `kept_bytes`: of what the operation keeps besides; `scratch`: bytes that
        the forward pass needs for the moment.
        """
        result = self.new(size)
        self.meter.add(scratch, -scratch, kept_bytes)
        if not self.records:
            self.meter.add(-kept_bytes)
            return result
        for tensor in keeps:
            self.hold(tensor)

        def backward(gradients: list[Storage]) -> None:
            given = [self.new(tensor.size).storage for tensor in inputs]
            self.drop(gradients[0])
            self.free(*keeps)
            self.meter.add(-kept_bytes)
            for tensor, gradient in zip(inputs, given, strict=True):
                self.give(tensor, gradient)

        self.record((result,), backward)
        return result

    def add(self, *inputs: Tensor) -> Tensor:
        """A sum: all inputs get the sum's own gradient."""
        result = self.new(inputs[0].size)

        def backward(gradients: list[Storage]) -> None:
            gradients[0].holders += len(inputs) - 1
            for tensor in inputs:
                self.give(tensor, gradients[0])

        self.record((result,), backward)
        return result

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Views of parts; their gradients are joined to one."""
        parts = [Tensor(self.hold(tensor).storage, size) for size in sizes]

        def backward(gradients: list[Storage]) -> None:
            joined = self.new(tensor.size).storage
            for gradient in gradients:
                self.drop(gradient)
            self.give(tensor, joined)

        self.record(parts, backward)
        return parts

    def record(self, results: Sequence[Tensor], backward: Callable[[list[Storage]], None]) -> None:
        """`backward` gets the gradients of the results, and holds them."""
        if self.records:
            self._nodes.append((results, backward))

    def give(self, tensor: Tensor, gradient: Storage) -> None:
        """Add to the gradient of a tensor."""
        if tensor.gradient is None:
            tensor.gradient = gradient
            return
        total = self.new(tensor.size).storage
        self.drop(tensor.gradient)
        self.drop(gradient)
        tensor.gradient = total

    def backward(self) -> None:
        """Run all operations backward whose results have gradients, and forget them."""
        nodes, self._nodes = self._nodes, []
        for results, backward in reversed(nodes):
            gradients = [result.gradient for result in results]
            if None not in gradients:
                for result in results:
                    result.gradient = None
                backward([gradient for gradient in gradients if gradient is not None])
