"""--help and its defaults; paths and names on a command line, what is printed of them, and errors of the system."""
import os
import resource
import subprocess
import sys
from argparse import Namespace

import pytest
from scripts import ROOT, run
from test_compare import write_evaluation

import compare
import genotypes
import train_cifar
import train_imagenet
import train_search
from harness import cli
from harness.log import printable
from harness.process import Stopped

GROUPS = {train_search: ["data", "stages", "weights", "alphas", "run"],
          train_cifar: ["data", "network", "optimization", "testing", "run"],
          train_imagenet: ["data", "network", "optimization", "testing", "run"]}
MODULES = pytest.mark.parametrize("module", list(GROUPS), ids=lambda module: module.__name__)


def options(module) -> dict:
    """name -> (its action, its help as --help prints it, in one line), but for --help."""
    parser = module.get_args_parser()
    return {action.dest: (action, parser._get_formatter()._expand_help(action)) for action in parser._actions
            if action.dest != "help"}


@MODULES
def test_every_option_has_a_short_help_with_its_default(module):
    for name, (action, text) in options(module).items():
        assert "default: " in text and len(text) <= 80, (name, text)
        if action.nargs == 0:
            assert action.default is False and text.endswith("; default: off"), name
        elif action.default is not None:
            assert text.endswith(f"; default: {action.default}"), name
        else:  # a function fills it in, or nothing has to
            assert "None" not in text and len(text.split("default: ")[1]) > 0, name


@MODULES
def test_every_option_is_in_one_of_the_groups(module):
    parser = module.get_args_parser()
    groups = {group.title: {action.dest for action in group._group_actions} for group in parser._action_groups[2:]}
    assert sorted(groups) == sorted(GROUPS[module])
    assert set.union(*groups.values()) == set(options(module))
    assert sum(map(len, groups.values())) == len(options(module))


@pytest.mark.parametrize("words, name, value, text", [
    ("", "dataset", "digits", "digits without --tmp_data_dir"), ("--tmp_data_dir x", "dataset", "cifar10", "cifar10"),
    ("", "tmp_data_dir", "data", "default: data"), ("", "add_layers", [6, 12], "6 12"),
    ("", "add_width", [0, 0], "0 0"), ("", "dropout_rate", [0.1, 0.4, 0.7], "0.1 0.4 0.7")])
def test_the_default_that_help_names_is_filled_in(words, name, value, text, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_search.py", *words.split()])
    assert getattr(train_search.parse_args(), name) == value
    assert text in options(train_search)[name][1]


@pytest.mark.parametrize("batch_size, learning_rate", [(256, 0.1), (1024, 0.5)])
def test_the_learning_rate_that_imagenets_help_names_is_filled_in(batch_size, learning_rate, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_imagenet.py", "--tmp_data_dir", "x", "--batch_size", str(batch_size)])
    assert train_imagenet.parse_args().learning_rate == pytest.approx(learning_rate)
    assert f"{learning_rate} at " in options(train_imagenet)["learning_rate"][1]
    assert str(batch_size) in options(train_imagenet)["learning_rate"][1]


@pytest.mark.parametrize("words", [
    ["--dropout_rate", "0.1 0.4 0.7"], ["--dropout_rate", "0.1,0.4,0.7"], ["--add_layers", "6 12"],
    ["--add_width=0 0"], ["--dropout_rate", "0.1", "0.4", "0.7"]])
def test_values_in_one_word_are_told_how_they_are_written(words, capsys):
    with pytest.raises(SystemExit) as ended:
        train_search.parse_args(words)
    line, = capsys.readouterr().err.splitlines()
    name = words[0].split("=")[0] if len(words) < 4 else "--add_layers"
    assert ended.value.code == 2 and f"repeat the option for each of its values: {name} FIRST {name} SECOND" in line


@pytest.mark.parametrize("module, words", [
    (train_search, ["--dropout_rate", "7"]), (train_search, ["--add_layers", "x"]),
    (train_cifar, ["--epochs", "1", "2"])])
def test_other_values_are_not(module, words, capsys):
    with pytest.raises(SystemExit):
        module.parse_args(words)
    assert "repeat" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-I", "visualize.py"], ["-P", "compare.py"]])
def test_safe_interpreters_find_the_modules(words, tmp_path):
    done = subprocess.run([sys.executable, words[0], ROOT / words[1], "--help"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("script", ["train_search.py", "train_cifar.py", "train_imagenet.py", "export.py"])
def test_so_do_those_that_import_torch(script):
    """Without a second for each: the line that helps comes before their first import of this repository."""
    text = (ROOT / script).read_text()
    assert text.index(f'sys.path.insert(0, __file__.removesuffix("{script}"))') < text.index("import genotypes")


@MODULES
def test_help_prints_the_groups_in_order(module):
    outcome = run(f"{module.__name__}.py", "--help")
    assert outcome.code == 0 and not outcome.err
    headings = [line[:-1] for line in outcome.out.split("options:\n")[1].splitlines() if line and line[0] != " "]
    assert headings == GROUPS[module]


# ---- errors of the system and of libraries

@pytest.mark.parametrize("error, text", [
    (RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config"), "install g++"),
    (RuntimeError("InductorError: RuntimeError: Failed to find C compiler. Please specify via CC"), "install g++"),
    (RuntimeError("CppCompileError: C++ compile error"), "install g++"),
    (OSError(24, "Too many open files"), "ulimit -n"), (OSError(24, "Too many open files", "x.png"), "ulimit -n"),
    (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "ulimit -n"),
    (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
    (RuntimeError("can't start new thread"), "out of memory"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of memory"),
    (RuntimeError("operator torchvision::nms does not exist"), "out of memory"),
    (PermissionError(13, "Permission denied", "/x/pictures"), "Permission denied: '/x/pictures': check"),
    (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -a"),
    (BrokenPipeError(32, "Broken pipe"), "what reads this output has ended"),
    (OSError("ours: do this"), "ours: do this")])
def test_raw_errors_are_one_line_with_what_to_do(error, text, capsys):
    def main(args):
        raise error
    with pytest.raises(SystemExit) as ended:
        cli.run(main, lambda: train_cifar.parse_args([]))
    line, = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: ") and text in line and "Errno" not in line


def test_output_that_cannot_be_written_is_one_line_at_the_end_too(tmp_path):
    """Python buffers a short table until the interpreter's exit, where an error is status 120."""
    table = next((ROOT / "results").glob("eval-cifar-PDARTS-*"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, ROOT / "compare.py", table], stdout=full, stderr=subprocess.PIPE,
                              env=environment, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def test_the_command_that_continues_a_control_names_it(monkeypatch, capsys):
    def main(args):
        raise Stopped(143, "stopped by SIGTERM")
    monkeypatch.setattr(sys, "argv", ["experiments/controls.py", "noise", "--seed", "3"])
    with pytest.raises(SystemExit):
        cli.run(main, lambda: Namespace(resume="controls/search-x"))
    assert "continue with: python experiments/controls.py noise --resume controls/search-x" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seed", str(2 ** 63)], ["--note", "n" * 201]])
def test_what_no_generator_or_folder_can_take_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        train_cifar.parse_args(words)
    assert ended.value.code == 2 and words[0] in capsys.readouterr().err


def test_a_missing_module_keeps_its_traceback():
    def main(args):
        raise ModuleNotFoundError("No module named 'nonsense'")
    with pytest.raises(ModuleNotFoundError):
        cli.run(main, lambda: train_cifar.parse_args([]))


def few_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))


def test_too_few_open_files_end_a_run_in_one_line(data, tmp_path):
    tiny = "--image_size 32 --init_channels 2 --layers 1 --batch_size 4 --epochs 1 --lr_scheduler cosine --workers 4"
    options = [*tiny.split(), "--device", "cpu", *data[2:], "--save", tmp_path]
    outcome = run("train_imagenet.py", *options, change=few_files)
    assert outcome.code == 1 and outcome.err.count("error: too many open files: ") == 1, outcome


# ---- paths and texts of other systems

@pytest.mark.parametrize("words", [["--save", "~/runs"], ["--save=~/runs"], ["--tmp_data_dir", "~"], ["--resume=~/x/y"],
                                   ["--weights", "~/w.pt"], ["--init_weights=~/w.pt"], ["--arch", "~/cell.json"]])
def test_a_tilde_is_the_home_folder_in_any_option(words, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    option, text = words if len(words) == 2 else words[0].split("=")
    args = train_cifar.get_args_parser().parse_args(words)
    assert vars(args)[option[2:]] == text.replace("~", "/home/me")


def test_a_tilde_elsewhere_is_a_character_and_a_home_is_no_note(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    parser = train_cifar.get_args_parser()
    assert parser.parse_args(["--note", "a~b", "--save", "x/~"]).save == "x/~"
    with pytest.raises(SystemExit):
        parser.parse_args(["--note", "~"])
    assert "omit slashes" in capsys.readouterr().err


@pytest.mark.parametrize("pattern, found", [("eval-*", ["eval-1", "eval-2"]), ("eval-?", ["eval-1", "eval-2"]),
                                            ("*/", ["eval-1/", "eval-2/", "odd-[1]/"]), ("odd-[1]", ["odd-[1]"]),
                                            ("none-*", ["none-*"]), ("eval-1", ["eval-1"])])
def test_run_directories_are_globbed_where_no_shell_does(pattern, found, tmp_path, monkeypatch):
    for name in ("eval-1", "eval-2", "odd-[1]"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["compare.py", pattern])
    assert compare.parse_args().run_dirs == found


def test_a_pattern_in_another_option_is_its_value(tmp_path, monkeypatch):
    (tmp_path / "ab").mkdir()
    monkeypatch.chdir(tmp_path)
    assert train_cifar.get_args_parser().parse_args(["--note", "a?", "--arch", "a*"]).arch == "a*"


NAMES = {"\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m", "a\rb": r"a\rb", "a\nb": r"a\nb", "\x9b31m": r"\x9b31m",
         "\u202egpj": r"\u202egpj", "a\u2028b": r"a\u2028b", "\udcff": r"\udcff", "\x07": r"\x07",
         "é, 日本, a b \\ ±": "é, 日本, a b \\ ±"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_without_what_a_terminal_obeys(name, tmp_path, capsys):
    assert printable(name) == printable(printable(name)) == NAMES[name]
    with pytest.raises(SystemExit):
        train_cifar.get_args_parser().parse_args([f"--{name}"])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and (NAMES[name] in error or name.strip() != name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_cannot_forge_a_line_of_the_log_in_a_message_or_a_traceback(name, tmp_path):
    code = f"""
import argparse, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from harness import cli
from harness.log import log, log_to_file
def main(args):
    log_to_file(Path({str(tmp_path)!r}, "log.txt"))
    log.info("class %s", {name!r})
    raise ValueError("class " + {name!r})
cli.run(main, argparse.Namespace)
"""
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    outcome = run(tmp_path / "program.py")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert outcome.code == 1 and outcome.err.split("\n")[0] == f"class {NAMES[name]}"
    assert len(outcome.err.split("\n")) == 3 and name not in outcome.err.replace(NAMES[name], "")
    first, *traceback, last = lines
    assert first.endswith(f" class {NAMES[name]}") and " error: class" in last
    assert all(line.startswith("  ") for line in traceback[1:]) and all(line.isprintable() for line in lines)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("form", ["--markdown", "--latex", "--json", None])
def test_tables_are_printed_on_a_terminal_without_unicode(encoding, form, tmp_path):
    random = [write_evaluation(tmp_path / f"random-{i}", [0.0, 90.0 + i], arch=f"random:{i}", genotype=genotypes.load(
        f"random:{i}")) for i in range(2)]
    PDARTS = genotypes.load("PDARTS")
    runs = [*random, write_evaluation(tmp_path / "日本 ±", [0.0, 95.0], arch="PDARTS", genotype=PDARTS)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, str(ROOT / "compare.py"), *runs, *([form] if form else [])],
                          env=environment, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert b"5.00" in done.stdout or form == "--json"
