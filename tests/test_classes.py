"""Accuracy per class, confusion matrix, predictions and surest mistakes, worked out by hand."""
import csv
import json

import numpy as np
import pytest
from PIL import Image
from scripts import by_hand, error_line, run, the_run, together, write_images

from reporting import classes
from reporting.figures import style
from reporting.tables import align

NAMES = ["cat, tabby", "dog", "owl"]  # no owl is in the test set
ROWS = [(0, 0, .9), (0, 1, .8), (0, 0, .7), (0, 0, .6), (1, 1, .5), (1, 0, .95)]  # class, prediction, probability


def test_a_class_counts_as_much_as_another_and_one_without_images_not_at_all():
    found = classes.measure(NAMES, ROWS)
    assert found["accuracy"] == [75, 50, None] and found["images"] == [4, 2, 0]
    assert found["balanced_accuracy"] == pytest.approx(62.5)
    assert found["confusion"] == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert classes.tabulate(found)[1:] == [["cat, tabby", "4", "75.00"], ["dog", "2", "50.00"], ["owl", "0", "–"],
                                           ["mean of the classes", "6", "62.50"]]


def test_the_surest_mistakes_come_first_and_are_drawn_with_what_they_were_taken_for(tmp_path):
    images = np.arange(6 * 3 * 16, dtype=np.uint8).reshape(6, 3, 4, 4)
    assert classes.write(tmp_path, NAMES, range(6), images.__getitem__, ROWS)["balanced_accuracy"] == 62.5
    with np.load(tmp_path / "mistakes.npz") as mistakes:
        assert mistakes["rows"].tolist() == [[1, 0, .95], [0, 1, .8]]
        assert np.array_equal(mistakes["0"], images[5]) and np.array_equal(mistakes["1"], images[1])
    with open(tmp_path / "predictions.csv", newline="") as file:
        head, first, *rest = csv.reader(file)
    assert head == ["index", "class", "prediction", "probability"] and len(rest) == 5
    assert first == ["0", "cat, tabby", "cat, tabby", "0.900000"]
    with style():
        figures = classes.draw(tmp_path, tmp_path)
    confusion, mistakes = (path.read_text() for path in figures.values())
    assert ">cat, tabby 95%<" in mistakes and ">(is dog)<" in mistakes and ">3<" in confusion
    with Image.open(tmp_path / "mistakes.png") as image:
        image.verify()


def test_a_run_without_mistakes_has_only_the_matrix(tmp_path):
    classes.write(tmp_path, NAMES, range(1), lambda i: None, ROWS[:1])
    with style():
        assert list(classes.draw(tmp_path, tmp_path).values()) == [tmp_path / "confusion.svg"]


def test_for_more_than_100_classes_only_predictions_are_written(tmp_path):
    names = [f"class {i}" for i in range(101)]
    assert classes.write(tmp_path, names, [f"{i}.png" for i in range(6)], lambda i: None, ROWS) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
    assert (tmp_path / "predictions.csv").read_text().startswith("file,class,prediction,probability\n0.png,class 0,")
    with style():
        assert classes.draw(tmp_path, tmp_path) == {}


def test_a_class_cannot_forge_a_line_or_send_an_escape_sequence_to_the_terminal():
    measured = classes.measure(["a\x1b[31m", "b\nc", "owl"], ROWS)
    assert [line.split()[0] for line in align(classes.tabulate(measured)).splitlines()[2:]] == [
        r"a\x1b[31m", r"b\nc", "owl", "mean"]


# ---- by the scripts

@pytest.mark.parametrize("script", ["train_cifar.py", "train_imagenet.py"])
def test_two_ranks_write_each_test_image_once_as_one_process_does(script, tmp_path):
    """Of 5 images per class, unequally many for each rank."""
    data = ["--tmp_data_dir", write_images(tmp_path / "images", val=5), "--image_size", 32, "--workers", 0]
    data += ["--dataset", "folder"] if script == "train_cifar.py" else ["--lr_scheduler", "cosine"]
    options = [*data, "--init_channels", 4, "--layers", 2, "--device", "cpu", "--batch_size", 8]
    ends = together(script, *options, "--epochs", 1, "--save", tmp_path / "runs", environments=by_hand(2))
    assert [outcome.code for outcome in ends] == [0, 0], ends
    trained = the_run(tmp_path / "runs")
    paths = trained / "predictions.csv", tmp_path / "one.csv"
    outcome = run(script, *options, "--eval", "--weights", trained / "weights.pt", "--predictions", paths[1])
    assert outcome.code == 0, outcome
    both, one = (list(csv.reader(path.open(newline=""))) for path in paths)
    assert [row[:3] for row in both] == [row[:3] for row in one] and len({row[0] for row in one}) == 1 + 10
    assert [float(row[3]) for row in both[1:]] == pytest.approx([float(row[3]) for row in one[1:]], abs=1e-5)
    assert json.loads((trained / "classes.json").read_text())["images"] == [5, 5]


def test_predictions_of_a_training_run_are_its_own(tmp_path):
    line = error_line(run("train_cifar.py", "--predictions", tmp_path / "x.csv"), 2)
    assert "--predictions goes with --eval" in line and not list(tmp_path.iterdir())


def test_a_file_of_predictions_that_cannot_be_written_is_named(training, data, tmp_path):
    line = error_line(run("train_cifar.py", *data, "--image_size", 8, "--init_channels", 2, "--layers", 3, "--arch",
                          training, "--device", "cpu", "--eval", "--weights", training / "weights.pt",
                          "--predictions", tmp_path / "none/x.csv"), 1)
    assert "none/x.csv" in line
