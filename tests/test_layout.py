"""The layout: who may import whom, and what no program imports before it needs it."""
import ast
import json
import subprocess
import sys

import pytest
from scripts import ROOT

LEVELS = (  # from the ground up: a module imports from lower levels
    ("harness", "genotypes", "operations"),
    ("utils", "progressive", "fast"),
    ("input_pipeline", "model_search", "model", "architect", "reporting"),
    ("engine", "hubconf", "compare", "visualize"),
    ("export",),
    ("train_search", "train_cifar", "train_imagenet"),
    ("benchmarks",),
    ("experiments",))
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
MAY_IMPORT = {"harness": set(), "input_pipeline": {"harness", "utils"}, "fast": {"operations", "genotypes"},
              "reporting": {"harness", "genotypes", "progressive"}}  # what the packages know


def imports(path) -> set[str]:
    """The modules and packages of this repository that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} & LEVEL.keys()


def test_imports_point_down():
    folders = [name for name in LEVEL if (ROOT / name).is_dir()]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).glob("*.py"))]
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files} == LEVEL.keys()
    for path in files:
        place = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(path) - {place}:
            assert LEVEL[name] < LEVEL[place], f"{path.name} imports {name}, which is not below it"
            assert name in MAY_IMPORT.get(place, {name}), f"{path} imports {name}, which {place}/ must not know"


STARTS = """
import json, os, runpy, sys
def start(script):
    reading, writing = os.pipe()
    if not os.fork():
        sys.argv, sys.stdout, code = [script, "--help"], open(os.devnull, "w"), None
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        os.write(writing, json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]).encode())
        os._exit(0)
    os.close(writing)
    return json.load(os.fdopen(reading))
found = {script: start(script) for script in ("compare.py", "visualize.py")}
import torch  # once for all of the others
for script in ("train_search.py", "train_cifar.py", "train_imagenet.py", "export.py"):
    found[script] = start(script)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def starts():
    """script -> [the exit status of its --help, the modules and packages that are imported then]."""
    done = subprocess.run([sys.executable, "-c", STARTS], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script, never", [
    ("compare.py", ("torch", "torchvision", "matplotlib")), ("visualize.py", ("torch", "torchvision", "matplotlib")),
    ("train_search.py", ("torchvision", "matplotlib")), ("train_cifar.py", ("torchvision", "matplotlib")),
    ("train_imagenet.py", ("torchvision", "matplotlib")),
    ("export.py", ("torchvision",))])
def test_a_program_starts_without_what_it_does_not_need_yet(script, never, starts):
    code, imported = starts[script]
    assert code == 0 and "argparse" in imported and not set(imported) & set(never)
