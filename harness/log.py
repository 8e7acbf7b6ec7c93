"""The log: every message goes to the screen, and in a run to its log.txt as well."""
import logging
from logging.handlers import MemoryHandler
from pathlib import Path

log = logging.getLogger("pdarts")


def log_to_screen(level: int) -> None:
    """Print messages of this level and above; keep all of them until a run has a log.txt."""
    handler = logging.StreamHandler()
    handler.setLevel(level)
    log.addHandler(handler)
    log.addHandler(MemoryHandler(10_000))
    log.setLevel(logging.DEBUG)


def log_to_file(path: Path) -> None:
    """Append every message to a file, the earlier ones included. Raises OSError."""
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise OSError(f"can't write {path} ({error.strerror}): free space or fix access") from error
    handler.handleError = lambda record: None  # a full disk is reported where it matters
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    for early in [other for other in log.handlers if isinstance(other, MemoryHandler)]:
        early.setTarget(handler)
        early.close()
        log.removeHandler(early)
