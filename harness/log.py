"""The log: every message goes to the screen, and in a run to its log.txt as well."""
import contextlib
import logging
from logging.handlers import MemoryHandler
from pathlib import Path

from harness.files import replace_link

log = logging.getLogger("pdarts")


def printable(text: str) -> str:
    """A text from outside (a file's, class's, option's name) without line breaks, escape sequences and bytes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _make_printable(record: logging.LogRecord) -> bool:
    """Of a message and of a traceback: whatever names they quote, they can't forge another line of the log."""
    record.msg, record.args = printable(record.getMessage()), None
    if record.exc_info:
        lines = logging.Formatter().formatException(record.exc_info).split("\n")
        record.exc_text = "\n".join(f"  {printable(line)}" for line in lines)
    return True


log.addFilter(_make_printable)


@contextlib.contextmanager
def log_to_screen(level: int):
    """In a block, print messages of this level and above; keep all of them until a run has a log.txt."""
    def go_on(record):  # the terminal is closed, or what reads the messages has ended
        screen.setLevel(logging.CRITICAL + 1)
        log.warning("nothing can be printed any more: the messages are in log.txt only")

    screen, before = logging.StreamHandler(), (log.handlers[:], log.level)
    screen.setLevel(level)
    screen.handleError = go_on
    log.handlers += [screen, MemoryHandler(10_000)]
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for handler in set(log.handlers) - set(before[0]):
            with contextlib.suppress(OSError):  # a full disk: what is left of the log is lost
                handler.close()
        log.handlers[:] = before[0]
        log.setLevel(before[1])  # an assignment would leave the logger's cache of levels as it is


def log_to_file(path: Path) -> str | None:
    """Append every message to a file, the earlier ones included, and lock it -> the reason if that is not possible.

    Forked workers do not inherit this kind of lock: it is free when a killed run is gone, even if they still live.
    """
    try:
        replace_link(path)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return f"can't write {path} ({error.strerror}): free space or fix access"
    handler.handleError = lambda record: None  # a full disk is reported where it matters
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    try:
        import fcntl
        fcntl.lockf(handler.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handler.close()
        return f"{path.parent} is in use by another process: wait until that ends, or stop it"
    except (ImportError, OSError) as error:  # on Windows; on some network file systems
        log.info(f"{path.parent} can't be locked here ({error}): make sure that only one process resumes it")
    log.addHandler(handler)
    for early in [other for other in log.handlers if isinstance(other, MemoryHandler)]:
        early.setTarget(handler)
        early.close()
        log.removeHandler(early)
    return None
