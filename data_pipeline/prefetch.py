"""Runs an iterator ahead of its consumer in a thread."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


WAIT_SECONDS = 0.1


def prefetch(
    items: Iterator[Item],
    stop: threading.Event,
    depth: int = 1,
    materialize: Callable[[Item], object] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[Item, None, None]:
    """Yields the same items, produced by a thread up to `depth` items ahead.

    An exception in the thread is raised here. Closing this generator ends the thread; `stop` is set then, so that a
    slow producer can check it. If the consumer does not take an item within WAIT_SECONDS, the thread calls
    `materialize` once with that item. If no item is ready within WAIT_SECONDS, `should_stop` is called, and this
    generator returns if the result is true.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)

    def hand_over(item: Item | _End) -> bool:
        is_settled = False
        while not stop.is_set():
            try:
                ready.put(item, timeout=WAIT_SECONDS)
            except queue.Full:
                if not is_settled and not isinstance(item, _End):
                    materialize(item)
                    is_settled = True
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not hand_over(item) or stop.is_set():
                    return
        except BaseException as error:
            hand_over(_End(error))
        else:
            hand_over(_End(None))

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                if should_stop():
                    return
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        with contextlib.suppress(queue.Empty):  # makes room, so that the thread sees `stop` without waiting
            ready.get_nowait()
        thread.join()


class _End:
    """Marks the end of the items."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
