"""How well a network tells classes apart: its predictions, accuracy per class, confusion matrix, surest mistakes."""
import csv
import io
import json
import warnings
from pathlib import Path

import numpy

from harness import records
from harness.files import read_file, replace_file, write_file
from reporting.figures import drawable, save_figure

MOST_CLASSES = 100  # with more, a table and a matrix can't be read
SHOWN = 16  # mistakes


# ---- after a test: rows are (N, 3), the class, the predicted class and its probability of each test image

def write_predictions(path: Path, classes: list[str], files, rows) -> None:
    """Write a CSV file, a line per test image; files: their paths, or indices. Raises OSError."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["index" if isinstance(files, range) else "file", "class", "prediction", "probability"])
    table.writerows([file, classes[int(label)], classes[int(predicted)], f"{probability:.6f}"]
                    for file, (label, predicted, probability) in zip(files, rows))
    replace_file(path, buffer.getvalue().encode(errors="surrogateescape"))


def measure(classes: list[str], rows) -> dict:
    """Accuracy in % of each class (None without images) and their mean (balanced), images, and confusion matrix."""
    from sklearn import metrics  # here, because importing scikit-learn takes a second
    label, predicted = numpy.asarray(rows, dtype=int)[:, :2].T
    matrix = metrics.confusion_matrix(label, predicted, labels=range(len(classes)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without test images
        balanced = 100 * metrics.balanced_accuracy_score(label, predicted)
    images = matrix.sum(1).tolist()
    return {"classes": classes, "images": images, "balanced_accuracy": balanced, "confusion": matrix.tolist(),
            "accuracy": [100 * row[i] / n if n else None for i, (row, n) in enumerate(zip(matrix.tolist(), images))]}


def tabulate(measured: dict) -> list[list[str]]:
    """A line per class and one for their mean, the head first."""
    right = [row[i] for i, row in enumerate(measured["confusion"])]
    lines = zip(measured["classes"], measured["images"], right)
    return [["class", "images", "correct (%)"],
            *([name, str(n), f"{100 * found / n:.2f}" if n else "–"] for name, n, found in lines),
            ["mean of the classes", str(sum(measured["images"])), f"{measured['balanced_accuracy']:.2f}"]]


def write(run_dir: Path, classes: list[str], files, picture, rows) -> dict:
    """Write predictions.csv, and for up to MOST_CLASSES classes.json and mistakes.npz, of a run -> `measure`, or {}.

    picture: index -> test image (C, H, W) uint8. Raises OSError, which names --resume.
    """
    write_predictions(run_dir / "predictions.csv", classes, files, rows)
    if len(classes) > MOST_CLASSES:
        return {}
    measured, buffer, rows = measure(classes, rows), io.BytesIO(), numpy.asarray(rows)
    wrong = numpy.flatnonzero(rows[:, 0] != rows[:, 1])
    wrong = wrong[numpy.argsort(-rows[wrong, 2], kind="stable")][:SHOWN]
    numpy.savez(buffer, rows=rows[wrong], **{str(i): numpy.asarray(picture(int(k))) for i, k in enumerate(wrong)})
    write_file(run_dir / "classes.json", json.dumps(measured).encode())
    write_file(run_dir / "mistakes.npz", buffer.getvalue())
    return measured


# ---- figures

def draw(run_dir: Path, folder: Path) -> dict[str, Path]:
    """Draw a run's confusion matrix and mistakes into a folder -> {caption: SVG path}; {} if it has written none."""
    if not ((run_dir / "classes.json").exists() and (run_dir / "mistakes.npz").exists()):
        return {}
    measured = records.read_classes(run_dir)
    names = list(map(drawable, measured["classes"]))
    save_figure(draw_confusion(names, numpy.array(measured["confusion"])), folder / "confusion")
    figures = {"Confusion matrix: rows are classes, columns predictions; darker is a larger part of the row":
               folder / "confusion.svg"}
    try:
        with numpy.load(io.BytesIO(read_file(run_dir / "mistakes.npz"))) as mistakes:
            figure = draw_mistakes(names, mistakes) if len(mistakes["rows"]) else None
    except Exception:  # damage can surface as any exception
        raise ValueError(f"{run_dir}/mistakes.npz is damaged: --resume the run to rewrite it") from None
    if figure:
        save_figure(figure, folder / "mistakes")
        figures["The surest mistakes: what each was taken for, how surely, and its class"] = folder / "mistakes.svg"
    return figures


def shorten(names: list[str], length: int) -> list[str]:
    return [name if len(name) <= length else name[:length - 1] + "…" for name in names]


def draw_confusion(names: list[str], matrix: numpy.ndarray):
    """The numbers are of test images, in a matrix (K, K) of up to 20 classes."""
    from matplotlib.figure import Figure
    K, side = len(names), min(2 + 0.3 * len(names), 8)
    figure = Figure((side, side), layout="constrained")
    ax, share = figure.add_subplot(), matrix / matrix.sum(1, keepdims=True).clip(1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = min(7, 380 / K / 1.2)
    ax.set_xticks(range(K), shorten(names, 18), rotation=90, fontsize=size)
    ax.set_yticks(range(K), shorten(names, 18), fontsize=size)
    ax.tick_params(length=0)
    ax.set_xlabel("prediction")
    ax.set_ylabel("class")
    for i, k in numpy.argwhere(matrix) if K <= 20 else ():
        ax.text(k, i, matrix[i, k], ha="center", va="center", fontsize=7, color="w" if share[i, k] > 0.5 else "k")
    return figure


def draw_mistakes(names: list[str], mistakes):
    """mistakes: of mistakes.npz, the images "0", "1", ... (C, H, W) and their `rows`."""
    from matplotlib.figure import Figure
    names, figure = shorten(names, 13), Figure((7.2, 2.4))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.89, wspace=0.15, hspace=0.3)
    axes = figure.subplots(2, SHOWN // 2)
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, (label, predicted, probability)) in enumerate(zip(axes.flat, mistakes["rows"])):
        image = mistakes[str(i)].transpose(1, 2, 0)
        ax.imshow(image.repeat(3 // image.shape[2], axis=2), interpolation="nearest")
        ax.set_title(f"{names[int(predicted)]} {100 * probability:.0f}%\n(is {names[int(label)]})", fontsize=6, pad=3)
    return figure
