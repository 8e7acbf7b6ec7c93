"""docs/own-images.md as printed: from a folder of pictures to a searched cell, its network, a judgement and a file."""
import csv
import json
import re
import shlex
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from scripts import ROOT, figures, metrics, run

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs/own-images.md").read_text(), re.DOTALL)
PROGRAM = next(text for language, text in BLOCKS if language == "python")
COMMANDS = [shlex.split(line) for line in BLOCKS[-1][1].replace("\\\n", " ").splitlines()]
COUNTS = {"dark": 40, "light": 40, "red": 25}  # not as many of each


def write_pictures(folder):
    """Pictures of different sizes and kinds; what tells the classes apart is their brightness and colour."""
    random = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            height, width = random.integers(12, 30, 2)
            noise = random.integers(-40, 41, (height, width))
            grey = (noise + (200 if name == "light" else 60)).astype(np.uint8)
            pixels = np.stack([grey + 100, grey, grey], 2) if name == "red" else grey.astype(np.uint16) * 257 if (
                i % 2) else grey
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
        (folder / name / "._0.png").touch()  # as macOS leaves them
        (folder / name / ".ipynb_checkpoints").mkdir()
        (folder / name / ".ipynb_checkpoints" / "0-checkpoint.png").touch()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the page's program and commands were run, and how each ended."""
    folder = tmp_path_factory.mktemp("place")
    write_pictures(folder / "my-images")
    (folder / "split.py").write_text(PROGRAM)
    assert run(folder / "split.py", cwd=folder).code == 0
    outcomes = {}
    for _, script, *words in COMMANDS:
        filled = [next((str(path.relative_to(folder)) for path in folder.glob(word)), word) if "*" in word else word
                  for word in words]
        outcomes[script if "--eval" not in words else "eval"] = outcome = run(script, *filled, cwd=folder,
                                                                               change=figures)
        assert outcome.code == 0, outcome
    training, = folder.glob("runs/eval-images-*")
    return SimpleNamespace(folder=folder, outcomes=outcomes, training=training)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_program_keeps_a_fifth_of_each_class_for_testing(place):
    for name, count in COUNTS.items():
        train, val = (len(list((place.folder / "images" / split / name).iterdir())) for split in ("train", "val"))
        assert (train + val, val) == (count, count // 5)


def test_the_classes_are_told_apart_and_judged_by_held_out_images(place):
    *records, last = metrics(place.training)
    assert all("valid_acc" in record and "test_acc" not in record for record in records)
    assert last["best_test_acc"] > 80  # a third by chance
    assert f"{last['best_test_acc']:.2f}% test accuracy" in place.outcomes["eval"].err


def test_every_test_image_has_a_prediction_and_the_table_counts_them(place):
    rows = rows_of(place.folder / "predictions.csv")
    assert len({row["file"] for row in rows}) == len(rows) == 21
    assert all((place.folder / row["file"]).is_file() and row["class"] in row["file"] for row in rows)
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    lines = [line.split() for line in place.outcomes["eval"].out.splitlines()]
    for name, count in {"dark": 8, "light": 8, "red": 5}.items():
        right = sum(row["class"] == row["prediction"] == name for row in rows)
        assert [name, str(count), f"{100 * right / count:.2f}"] in lines


def test_the_run_has_the_same_of_its_last_weights(place):
    rows, found = rows_of(place.training / "predictions.csv"), json.loads((place.training / "classes.json").read_text())
    right = sum(row["class"] == row["prediction"] for row in rows)
    assert 100 * right / 21 == pytest.approx(metrics(place.training)[-1]["test_acc"])
    names = found["classes"]
    assert found["confusion"] == [[sum((row["class"], row["prediction"]) == (one, other) for row in rows)
                                   for other in names] for one in names]
    accuracies = [100 * found["confusion"][i][i] / n for i, n in enumerate((8, 8, 5))]
    assert found["accuracy"] == pytest.approx(accuracies)
    assert found["balanced_accuracy"] == pytest.approx(sum(accuracies) / 3)
    page = (place.training / "report.html").read_text()
    assert "Confusion matrix" in page and "mean of the classes" in page
    with np.load(place.training / "mistakes.npz") as mistakes:
        assert len(mistakes["rows"]) == min(16, 21 - right)


def test_the_file_for_production_predicts_and_the_cell_can_be_retrained_on_all_images(place):
    session = onnxruntime.InferenceSession(place.folder / "network.onnx")
    logits, = session.run(["logits"], {"images": np.zeros((2, 3, 16, 16), np.float32)})
    assert logits.shape == (2, 3)
    text = place.outcomes["compare.py"].out
    command = text[text.index("to train it on all images: python") + 27:].splitlines()[0]
    assert "--valid_portion" not in command and "--image_size 16" in command
