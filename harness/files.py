"""Files that are written whole or not at all."""
import contextlib
import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a run. Raises OSError, which names --resume."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise OSError(f"{error}, then continue with --resume; earlier files are intact") from error


def replace_file(path: Path, content: bytes, check=lambda temporary: None):
    """Write a file under a temporary name, call check(temporary), which may raise, then rename it -> check's result.

    On any error an existing file is kept and nothing new is left. Raises OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        result = check(temporary)
        os.replace(temporary, path)
        return result
    except OSError as error:
        raise OSError(f"can't write {path} ({error.strerror or error}): free space or fix access") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
