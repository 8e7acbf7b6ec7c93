"""Other systems: Windows, as far as hiding what it lacks shows it, and Python 3.10."""
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT, the_run, write_images

HIDDEN = f"""
import multiprocessing, os, runpy, signal, sys
sys.modules["resource"] = None  # importing it fails
for name in ("SIGUSR1", "SIGUSR2", "pthread_sigmask", "sigwait", "sigwaitinfo", "SIGKILL"):
    delattr(signal, name)
for name in ("fork", "forkpty", "sched_getaffinity", "sysconf", "sysconf_names"):
    delattr(os, name)
sys.path.insert(0, {str(ROOT)!r})

def run(script, *options):
    sys.argv = [script, *options]
    try:
        runpy.run_path(os.path.join({str(ROOT)!r}, script), run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, (script, ended.code)
"""
SCRIPTS = ("train_search.py", "train_cifar.py", "train_imagenet.py", "visualize.py", "compare.py")
RUN_ALL = """
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    tiny = "--init_channels 2 --layers 3 --epochs 1 --batch_size 8 --device cpu --save".split()
    folder = ["--tmp_data_dir", "images"]
    run("train_search.py", *tiny, "search", *folder, "--dataset", "folder", "--image_size", "8",
        "--add_layers", "0", "--add_layers", "0", "--warmup_epochs", "0")
    run("train_cifar.py", *tiny, "eval", *folder, "--dataset", "folder", "--image_size", "8")
    run("train_imagenet.py", *tiny, "imagenet", *folder, "--image_size", "32", "--lr_scheduler", "cosine",
        "--workers", "1")
    run("visualize.py", "PDARTS")
    run("compare.py", os.path.join("eval", *os.listdir("eval")))
"""


def run_hidden(code, folder):
    (folder / "hidden.py").write_text(HIDDEN + code)
    done = subprocess.run([sys.executable, "hidden.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_scripts_can_be_imported_without_what_windows_lacks(tmp_path):
    run_hidden("".join(f"import {Path(script).stem}\n" for script in SCRIPTS), tmp_path)


@pytest.mark.slow
def test_all_scripts_run_without_what_windows_lacks(tmp_path):
    write_images(tmp_path / "images", val=1)
    run_hidden(RUN_ALL, tmp_path)
    for save in ("search", "eval", "imagenet"):
        assert '"peak_memory_mb": null' in (the_run(tmp_path / save) / "metrics.jsonl").read_text()
    assert (tmp_path / "PDARTS-normal.png").exists()


def vermin(*paths):
    """What needs more than Python 3.10, by vermin: its exit status and what it says."""
    options = ["--target=3.10-", "--violations", "--no-tips", "--exclude=sets"]  # Python 2 had a module of that name
    command = [sys.executable, "-c", "from vermin import main; main()", *options, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_no_file_needs_more_than_python_3_10():
    files = [path for path in ROOT.rglob("*.py") if not {".git", ".venv", "venv"} & set(path.parts)]
    assert len(files) > 40 and ROOT / "harness" / "runs.py" in files
    code, text = vermin(*files)
    assert code == 0, text


@pytest.mark.parametrize("slip", [
    "import warnings\nwith warnings.catch_warnings(action='ignore'):\n    pass\n", "from datetime import UTC\n",
    "try:\n    pass\nexcept* ValueError:\n    pass\n", "import tomllib\n"])
def test_a_slip_would_be_found(slip, tmp_path):
    (tmp_path / "slip.py").write_text(slip)
    code, text = vermin(tmp_path / "slip.py")
    assert code and "3.11" in text, text
