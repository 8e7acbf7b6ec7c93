"""--help: the options in groups, each with its default, also those that are filled in after parsing."""
import pytest
from scripts import run

import train_cifar
import train_imagenet
import train_search

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


@MODULES
def test_help_prints_the_groups_in_order(module):
    outcome = run(f"{module.__name__}.py", "--help")
    assert outcome.code == 0 and not outcome.err
    headings = [line[:-1] for line in outcome.out.split("options:\n")[1].splitlines() if line and line[0] != " "]
    assert headings == GROUPS[module]
