"""SIGTERM, with which schedulers end a job: a run is saved, and ends in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from avalanche_clip import distributed


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Take SIGTERM for the wish that a run stops where it can be resumed.

    The processes agree on that place when they next meet. Further signals change
    nothing. A handler that the script has set itself stays, as outside the main thread.

    :raises SystemExit: with status 0, also if the run has ended meanwhile.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    # No more than this: a handler may come in the middle of anything.
    signal.signal(signal.SIGTERM, lambda *_: distributed.ask_to_stop())
    try:
        yield
        if distributed.asked_to_stop() or distributed.stopping():
            raise SystemExit(0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        distributed.ask_to_stop(False)
