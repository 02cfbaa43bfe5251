"""Work done ahead of whoever takes its results, in a thread."""

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
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Generator[Item, None, None]:
    """The same items, made in a thread, `depth` ahead; its exception is raised here, and closing this ends it.

    `stop` is set by then: whoever makes items that take long looks at it. `settle` is called by the thread, once, with
    an item that it could not hand over in WAIT_SECONDS. Where none is ready for so long, `asked_to_stop` ends this.
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
                if asked_to_stop():
                    return
                continue
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
