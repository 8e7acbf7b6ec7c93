"""An error that a user can fix, in one line: what is wrong, and what to do."""
import re
from argparse import Namespace

from harness import launchers

FIXABLE = {  # a pattern in an error's text: the line to print instead
    "DataLoader worker.*(shared memory|Bus error|No space left)":
        "a data-loading worker had too little shared memory (/dev/shm): lower --workers, to 0 if necessary, or provide "
        "more, in Docker with --shm-size=8g",
    "DataLoader worker .*(is killed|exited unexpectedly)":
        "a data-loading worker was killed, perhaps for lack of memory: lower --workers",
    "Too many open files|ancdata": "too many open files: lower --workers, or raise the limit with ulimit -n 4096",
    r"^\[Errno 32\] Broken pipe$": "what reads this output has ended, and the rest is not printed",
    "No working C.. compiler|Failed to find C compiler|CppCompileError":
        "--compile needs a working C++ compiler: install g++ or set CXX, or start a new run without --compile",
}


def explain(error: Exception, args: Namespace) -> str | None:
    """An error in one line, with what to do; None for a bug."""
    text, known = " ".join(str(error).split()), vars(args)
    # If torch waits for a data-loading worker that dies, only the cause says how it died.
    cause = " ".join(str(error.__cause__).split()) if text.startswith("DataLoader worker") else ""
    for pattern, line in FIXABLE.items():
        if re.search(pattern, text) or re.search(pattern, cause):
            return line + resume_hint(known)
    if getattr(error, "errno", None) is not None:  # from the system: this project's own errors say what to do
        return f"{text.partition('] ')[2]}: check the file, its access, and the limits of this process (ulimit -a)"
    if isinstance(error, (ValueError, OSError)):
        return text
    if launchers.world_size() > 1 and re.search("onnection (closed|reset) by|Broken pipe|remote process exited", text):
        return f"another process of this run has ended; see its output for the reason{resume_hint(known)}"
    if not isinstance(error, MemoryError) and not re.search(
            "out of memory|allocate memory|ALLOC(ATION)?_FAILED|failed to map segment|start new thread|"
            "torchvision::nms", text):
        return None
    hints = ["--grad_checkpoint"] if known.get("grad_checkpoint") is False else []
    size, processes = known.get("batch_size", 0), launchers.world_size()
    minimum = 1 if known.get("eval") else 2 * processes  # batch norm trains on 2 or more
    smaller = max(minimum, size // 2 // processes * processes)
    hints += [f"a new run with --batch_size {smaller}"] if smaller < size else []
    return f"out of memory: try {', or '.join([*hints, 'a device with more memory'])}"


def resume_hint(args: dict) -> str:
    return f"; continue with --resume {args['resume']}" if args.get("resume") else ""
