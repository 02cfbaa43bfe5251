"""Work done ahead of whoever takes its results, in a thread."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item], stop: threading.Event, depth: int = 1) -> Generator[Item, None, None]:
    """The same items, made in a thread, `depth` ahead; its exception is raised here, and closing this ends it.

    `stop` is set by then: whoever makes items that take long looks at it.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)

    def hand_over(item: Item | _End) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
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
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        with contextlib.suppress(queue.Empty):  # makes room, so that the thread need not wait to see the sign
            ready.get_nowait()
        thread.join()


class _End:
    """Comes after the last item."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
