"""Files that are written whole or not at all."""
import contextlib
import os
import secrets
from pathlib import Path


def read_file(path: Path) -> bytes:
    """A file's content. Raises OSError, also if it is a folder, or a pipe or a device, whose content may never end."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a folder, a pipe or a device: restore the file, or remove it")
    return path.read_bytes()


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a run. Raises OSError, which names --resume."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise OSError(f"{error}, then continue with --resume; earlier files are intact") from error


def replace_link(path: Path) -> None:
    """Replace a link in a run by a copy of its file, a pipe by nothing, so that what they lead to is never written."""
    if path.is_symlink() or path.is_fifo():
        content = path.read_bytes() if path.is_file() else None
        path.unlink()
        if content is not None:
            path.write_bytes(content)


def replace_file(path: Path, content: bytes, check=lambda temporary: None):
    """Write a file under a temporary name, call check(temporary), which may raise, then rename it -> check's result.

    In a run the temporary name is fixed, so that what a kill leaves is replaced; elsewhere no other file has it. A link
    at `path` is replaced, its target is kept. On any error an existing file is kept and nothing new is left. Raises
    OSError.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    if path.name == "args.json" or any((folder / "args.json").exists() for folder in path.parents[:2]):
        temporary = path.with_name(path.name + ".tmp")
        with contextlib.suppress(OSError):
            temporary.unlink()  # it may be a link
    try:
        if path.exists() and not path.is_file():  # os.replace would remove a device such as /dev/null
            raise OSError("a folder, a pipe or a device has this name")
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
