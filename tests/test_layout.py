"""The layout: who may import whom, and what no program imports before it needs it."""
import ast
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


@pytest.mark.parametrize("script, never", [
    ("compare.py", ("torch", "torchvision")), ("visualize.py", ("torch", "torchvision")),
    ("train_search.py", ("torchvision",)), ("train_cifar.py", ("torchvision",)),
    ("train_imagenet.py", ("torchvision",)),
    ("export.py", ("torchvision",))])
def test_a_program_starts_without_what_it_does_not_need_yet(script, never):
    done = subprocess.run([sys.executable, "-X", "importtime", script, "--help"], cwd=ROOT, capture_output=True,
                          text=True, timeout=100)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "argparse" in imported and not imported & set(never)
