"""A run knows its data: its network is used with the run's classes and moments, and is not trained on with others."""
import json
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from scripts import error_line, run, snapshot, the_run
from test_batches import random_set

import hubconf
from harness import records
from input_pipeline import imagenet, load, sets

TINY = shlex.split("--dataset folder --image_size 8 --batch_size 8 --init_channels 4 --layers 2 --device cpu")


def write_tree(root, darker=0, count=10):
    """Cats and dogs that differ in brightness, 130 and 150; in training all are darker by `darker`."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, value in (("cat", 130), ("dog", 150)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(value - 6, value + 7, size=(12, 12, 3)) - darker * (split == "train")
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def rename_cat(root):
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "zebra")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training that tells cats from dogs, and its data."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = run("train_cifar.py", *TINY, "--tmp_data_dir", write_tree(folder / "data"), "--epochs", 8, "--save",
                  folder / "runs")
    assert outcome.code == 0, outcome
    run_dir = the_run(folder / "runs")
    assert records.read_run(run_dir)[1][-1]["test_acc"] == 100
    return SimpleNamespace(run=run_dir, data=folder / "data", log=outcome.err)


def without_log(folder):
    return {name: content for name, content in snapshot(folder).items() if name != "log.txt"}


def accuracy(outcome) -> float:
    assert outcome.code == 0, outcome
    return float(outcome.err.split("% test accuracy")[0].split()[-1])


def metadata(path) -> dict:
    with safe_open(path, "pt") as file:
        return {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}


# ---- other classes

def test_other_classes_are_refused_by_resume_eval_and_export(trained, tmp_path):
    run_dir, data = shutil.copytree(trained.run, tmp_path / "run"), shutil.copytree(trained.data, tmp_path / "data")
    rename_cat(data)
    before = without_log(tmp_path)
    for command in (["train_cifar.py", "--resume", run_dir], ["export.py", run_dir, "--onnx", tmp_path / "x.onnx"],
                    ["train_cifar.py", *TINY, "--eval", "--weights", run_dir / "best.pt"],
                    ["export.py", "PDARTS", "--dataset", "folder", "--weights", run_dir / "best.pt", "--image_size", 8,
                     "--safetensors", tmp_path / "x.safetensors"]):
        message = error_line(run(*command, "--tmp_data_dir", data), 1)
        assert f"{run_dir} was trained on other classes (only there: cat; only here: zebra)" in message
    assert {name: content for name, content in without_log(tmp_path).items() if name != "run/log.txt"} == {
        name: content for name, content in before.items() if name != "run/log.txt"}


@pytest.mark.parametrize("now, words", [
    (["zebra", "dog", "cat"], "only there: ant; only here: zebra"), (["dog", "cat", "ant"], "in another order"),
    (["ant", "cat"], "only there: dog"), (["ant", "cat", "dog", "eel"], "only here: eel"),
    ([f"c{i:02}" for i in range(12)], "only there: ant, cat, dog; only here: c00, c01, c02, c03, c04")])
def test_up_to_five_classes_are_named(now, words, tmp_path):
    record(tmp_path, describe(["ant", "cat", "dog"]))
    with pytest.raises(ValueError) as error:
        records.compare_data(tmp_path, describe(now))
    assert f"({words})" in str(error.value) and str(tmp_path) in str(error.value)


def describe(classes):
    return sets.describe(classes, (.5, .4, .3), (.2, .2, .2), 32, 32, range(len(classes)), "d")


def record(run_dir, data):
    (run_dir / "args.json").write_text("{}")
    (run_dir / "data.json").write_text(json.dumps(data))


# ---- other images

def test_the_runs_moments_are_used_by_eval_export_and_hub(trained, tmp_path):
    """With a mean of its own the other set has no accuracy above chance: all its test images look bright."""
    other = ["--tmp_data_dir", write_tree(tmp_path / "other", darker=60)]
    outcome = run("train_cifar.py", *TINY, "--eval", "--weights", trained.run / "weights.pt", *other)
    assert accuracy(outcome) == 100
    assert f"this is not the data of {trained.run} (other mean); the run's mean and deviation are used" in outcome.err
    shutil.copy(trained.run / "weights.pt", tmp_path)  # beside no run, as before
    assert accuracy(run("train_cifar.py", *TINY, "--eval", "--weights", tmp_path / "weights.pt", *other)) < 90
    (tmp_path / "link.pt").symlink_to(trained.run / "weights.pt")
    assert accuracy(run("train_cifar.py", *TINY, "--eval", "--weights", tmp_path / "link.pt", *other)) == 100
    outcome = run("export.py", trained.run, *other, "--safetensors", tmp_path / "x.safetensors")
    assert outcome.code == 0, outcome
    about, data = metadata(tmp_path / "x.safetensors"), records.read_data(trained.run)
    network = hubconf.pdarts_cifar(num_classes=2, init_channels=4, layers=2, weights=trained.run / "best.pt")
    for name in ("classes", "mean", "std", "image_size", "resize"):
        assert about[name] == data[name] == getattr(network, name)


def test_the_runs_own_data_are_not_called_another_set(trained):
    outcome = run("train_cifar.py", *TINY, "--eval", "--weights", trained.run / "weights.pt", "--tmp_data_dir",
                  trained.data)
    assert accuracy(outcome) == 100 and "another set" not in outcome.err


def change(root, how):
    """Change a set of images without changing its classes -> the entries of data.json that tell."""
    if how == "fewer":
        (root / "train/dog/3.png").unlink()
        return "images, digest"
    if how == "renamed":
        (root / "train/dog/3.png").rename(root / "train/dog/03.png")
        return "digest"
    if how == "moved":
        (root / "train/dog/3.png").rename(root / "train/cat/a.png")
        return "images, digest"
    if how == "test images":
        (root / "val/dog/3.png").unlink()
        return "digest"
    shutil.rmtree(root)  # of the same names
    write_tree(root, darker=60)
    return "mean"


@pytest.mark.parametrize("how", ["fewer", "renamed", "moved", "test images", "darker"])
def test_a_run_is_not_resumed_on_other_images(how, trained, tmp_path):
    run_dir, data = shutil.copytree(trained.run, tmp_path / "run"), shutil.copytree(trained.data, tmp_path / "data")
    entries, before = change(data, how), without_log(run_dir)
    message = error_line(run("train_cifar.py", "--resume", run_dir, "--tmp_data_dir", data), 1)
    assert f"{run_dir} began with other data (other {entries}" in message
    assert without_log(run_dir) == before


def test_a_search_is_not_resumed_with_other_labels(search, data, tmp_path):
    run_dir, images = shutil.copytree(search, tmp_path / "run"), shutil.copytree(data[-1], tmp_path / "images")
    for split in ("train", "val"):  # the bears get the second label
        (images / split / "bear").rename(images / split / "yak")
    message = error_line(run("train_search.py", "--resume", run_dir, "--tmp_data_dir", images), 1)
    assert "only there: bear; only here: yak" in message
    shutil.rmtree(images)
    shutil.copytree(data[-1], images)
    assert run("train_search.py", "--resume", run_dir, "--tmp_data_dir", images).code == 0  # a copy is the same data


def test_train_imagenet_knows_its_data_too(trained, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "data")
    options = shlex.split("--image_size 32 --batch_size 8 --lr_scheduler cosine --workers 0 --init_channels 4 "
                          "--layers 2 --device cpu --epochs 1")
    outcome = run("train_imagenet.py", *options, "--tmp_data_dir", data, "--save", tmp_path / "runs")
    assert outcome.code == 0, outcome
    run_dir = the_run(tmp_path / "runs")
    (data / "val/cat/0.png").unlink()
    test = ["--eval", "--weights", run_dir / "weights.pt", "--tmp_data_dir", data]
    assert "(other digest)" in run("train_imagenet.py", *options, *test).err
    resume = ["--resume", run_dir, "--tmp_data_dir", data]
    assert "began with other data (other digest in" in error_line(run("train_imagenet.py", *resume), 1)
    rename_cat(data)
    for command in (["train_imagenet.py", *options, *test], ["train_imagenet.py", *resume]):
        assert "only there: cat; only here: zebra" in error_line(run(*command), 1)


@pytest.mark.parametrize("entries", [None, ("classes", "mean", "std", "image_size")])
def test_what_an_older_run_did_not_record_is_not_compared(entries, trained, tmp_path):
    run_dir, data = shutil.copytree(trained.run, tmp_path / "run"), shutil.copytree(trained.data, tmp_path / "data")
    change(data, "test images")
    old = records.read_data(run_dir)
    (run_dir / "data.json").unlink()
    if entries:
        (run_dir / "data.json").write_text(json.dumps({name: old[name] for name in entries}))
    test = ["--eval", "--weights", run_dir / "weights.pt", "--tmp_data_dir", data]
    outcome = run("train_cifar.py", *TINY, *test)
    assert accuracy(outcome) == 100 and "another set" not in outcome.err
    assert run("train_cifar.py", "--resume", run_dir, "--tmp_data_dir", data).code == 0
    if entries:
        with pytest.raises(ValueError, match="no data.json that says how"):
            hubconf.pdarts_cifar(weights=run_dir).read(data / "val/cat/1.png")


# ---- what data.json holds

def test_data_json_holds_the_identity(trained):
    data = records.read_data(trained.run)
    train = torch.stack([torch.from_numpy(np.array(Image.open(path).resize((8, 8), Image.Resampling.BILINEAR)))
                         for path in sorted((trained.data / "train").rglob("*.png"))]).double() / 255
    assert data["classes"] == ["cat", "dog"] and data["images"] == [10, 10]
    assert data["image_size"] == data["resize"] == 8 and len(data["digest"]) == 64
    assert data["mean"] == pytest.approx(train.mean((0, 1, 2)).tolist(), abs=1e-4)


def test_the_digest_of_a_set_in_memory_is_of_its_bytes(monkeypatch):
    digits, read = load("digits", ""), sets.read_digits
    assert load("digits", "", 16).digest == digits.digest == load("digits", "").digest
    for place in range(4):  # training and test, images and labels
        def changed(place=place):
            parts = [*read()]
            parts[place] = parts[place].clone()
            parts[place].view(-1)[5] += 1
            return parts
        monkeypatch.setattr(sets, "read_digits", changed)
        assert load("digits", "").digest != digits.digest


def test_the_digest_of_files_is_of_their_names_wherever_they_lie(tmp_path):
    def digest(root):
        data = imagenet.open_folders(str(root), 32)[2]
        assert load("folder", str(root), 8).digest == data["digest"] and data["images"] == [10, 10]
        return data["digest"]
    write_tree(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other/one")
    (tmp_path / "link").symlink_to("one")
    assert digest(tmp_path / "one") == digest(tmp_path / "other/one") == digest(tmp_path / "link")
    (tmp_path / "link/val/cat/0.png").rename(tmp_path / "link/val/cat/00.png")
    assert digest(tmp_path / "one") != digest(tmp_path / "other/one")


def test_a_grey_set_is_normalised_by_a_runs_three_channels(tmp_path):
    grey, data = random_set(channels=1), describe(["a"])
    record(tmp_path, data)
    other = sets.as_in_run(grey, tmp_path / "w.pt")
    assert (other.mean, other.std) == (data["mean"], data["std"]) and other.test_images.shape == (11, 3, 32, 32)
    assert other.test_images.is_contiguous()  # otherwise it can't be copied to pinned memory
    own = sets.as_in_run(grey, tmp_path / "no run/w.pt")
    assert own.mean == [.4] * 3 and torch.equal(own.test_images[:, 2:], grey.test_images)
