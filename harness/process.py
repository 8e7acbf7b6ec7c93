"""What a run changes in its process, and how all of it is put back when the run ends. Without torch."""
import contextlib
import logging
import traceback

from tqdm import tqdm

from harness.log import log_to_screen

_undo: contextlib.ExitStack | None = None  # of the run in this process


class Stopped(Exception):
    """A run ends early, on all ranks: (exit status, the line that gives the reason)."""


@contextlib.contextmanager
def restored(level: int = logging.INFO):
    """Decorates main, so that a process can run often: what a run changes is put back, however the run ends.

    Prints the messages of this level and above. Nested blocks are one.
    """
    global _undo
    if _undo:
        yield
        return
    _undo = contextlib.ExitStack()
    try:
        with log_to_screen(level), _undo:
            change(tqdm, "monitor_interval", 0)  # no thread of the progress bars outlives the run
            yield
    except Stopped as stopped:
        traceback.clear_frames(stopped.__traceback__)  # a notebook keeps them, and with them memory and workers
        raise
    finally:
        _undo = None


def at_end(function, *args) -> None:
    """Call function(*args) when the run in this process ends."""
    if _undo:
        _undo.callback(function, *args)


def change(owner, name: str, value) -> None:
    """Set an attribute until the run in this process ends."""
    with contextlib.suppress(RuntimeError):  # torch can't read, by its older interface, what was set by its newer one
        at_end(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
