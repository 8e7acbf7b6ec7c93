"""Searching where the data is large: the ImageNet stem, a whole search at 224x224."""
import json
import shlex
import signal
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from kill_loop import assert_same_result
from PIL import Image
from scripts import by_hand, epochs_done, error_line, run, start, the_run, together, write_images
from sklearn.datasets import load_sample_images
from test_fast import assert_equals_definition, draw_images
from torch import nn

import genotypes
import progressive
import train_search
import utils
from genotypes import PRIMITIVES
from input_pipeline import search_parts
from input_pipeline.imagenet import open_folders
from model import NetworkImageNet
from model_search import Network
from operations import FactorizedReduce, global_average_pool

SEARCH = "train_search.py"
TINY = shlex.split("--init_channels 2 --layers 3 --add_layers 0 --add_layers 0 --device cpu")


def supernet(C: int = 4, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    network = Network(C, 10, 3, [PRIMITIVES] * 14, [PRIMITIVES] * 14, skip_dropout=0.3, stem="imagenet").double()
    for alphas in (network.alphas_normal, network.alphas_reduce):
        nn.init.normal_(alphas)
    return network


# ---- the stem

def test_the_stem_is_the_evaluation_networks():
    network, evaluated = supernet().eval(), NetworkImageNet(4, 10, 3, False, genotypes.load("PDARTS")).double().eval()
    stems = {name: value for name, value in evaluated.state_dict().items() if name.startswith("stem")}
    assert len(stems) == 18 and stems.keys() == {name for name in network.state_dict() if name.startswith("stem")}
    for name, value in stems.items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    network.load_state_dict(stems, strict=False)
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    s0 = evaluated.stem0(images)
    s1 = evaluated.stem1(s0)
    assert s0.shape == (2, 4, 56, 56) and s1.shape == (2, 4, 28, 28)
    assert isinstance(network.cells[0].preprocess0, FactorizedReduce)
    weights = [alphas.softmax(-1) for alphas in (network.alphas_normal, network.alphas_reduce)]
    for cell in network.cells:
        s0, s1 = s1, cell(s0, s1, weights[cell.reduction])
    assert s1.shape == (2, 64, 7, 7)
    torch.testing.assert_close(network(images), network.classifier(global_average_pool(s1)), rtol=0, atol=0)


@pytest.mark.parametrize("step", ["alpha", "weight"])
@pytest.mark.parametrize("height, width", [(32, 32), (40, 72), (56, 33), (96, 96)])
def test_a_supernet_with_it_trains_as_defined(height, width, step, monkeypatch):
    network = supernet(seed=height)
    for name, p in network.named_parameters():
        p.requires_grad_(name.startswith("alphas") == (step == "alpha"))
    assert_equals_definition(network, draw_images(height, width, B=4), monkeypatch, checkpoint=(False, True))


# ---- a whole search

@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A tree of real images: 250x250 pixels out of scikit-learn's two photographs."""
    root = tmp_path_factory.mktemp("photographs") / "imagenet"
    for name, photograph in zip(("temple", "flower"), load_sample_images().images):
        for i in range(15):
            folder = root / ("train" if i < 12 else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            top, left = divmod(i, 5)
            crop = photograph[80 * top:80 * top + 250, 90 * left:90 * left + 250]
            Image.fromarray(crop).save(folder / f"{i}.jpg")
    return root.parent


def options_for(root, save, *more):
    return [*TINY, "--dataset", "imagenet", "--tmp_data_dir", root, "--batch_size", 4, "--epochs", 2, "--warmup_epochs",
            1, "--train_portion", 0.5, "--valid_portion", 0.34, "--workers", 1, "--save", save, *more]


@pytest.fixture(scope="module")
def undisturbed(photographs, tmp_path_factory):
    """A search at 224x224 that nobody stopped, and how it ended."""
    save = tmp_path_factory.mktemp("undisturbed")
    outcome = run(SEARCH, *options_for(photographs, save), timeout=300)
    assert outcome.code == 0, outcome
    return the_run(save), outcome


def test_a_search_on_files_says_what_it_takes_and_which_command_trains_its_cell(undisturbed, photographs):
    run_dir, outcome = undisturbed
    first, *_, last = outcome.err.splitlines()[2:]  # after what the two folders hold
    assert ("imagenet, 2 classes at 224x224, 12 training images for the weights, 8 for the alphas" in first
            and first.endswith("a stage takes 6 weight steps and 3 alpha steps"))
    assert last == (f"train it: python train_imagenet.py --tmp_data_dir {photographs} --arch {run_dir} --auxiliary")
    assert json.loads((run_dir / "args.json").read_text())["args"]["stem"] == "imagenet"
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == [1, 1, 2, 2, 3, 3]
    assert all(0 <= record["valid_acc"] <= 100 and record["valid_loss"] > 0 for record in records)


def test_its_genotypes_have_sizes_at_the_imagenet_setting(golden):
    row = train_search.describe(None, genotypes.load("PDARTS"), "imagenet")
    assert row["parameters"] == 4_944_352  # SPEC section 5
    assert row["multiply_adds"] == golden("genotypes.json")["PDARTS"]["computed"]["macs_imagenet"]


@pytest.mark.slow
def test_a_search_on_files_killed_and_stopped_ends_with_the_same_result(undisturbed, photographs, tmp_path):
    save = tmp_path / "runs"
    process = start(SEARCH, *options_for(photographs, save))
    process.wait_until(lambda: save.exists() and any(save.glob("*/checkpoint.pt")))
    process.signal(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    run_dir = the_run(save)
    for at in (2, 3):
        process = start(SEARCH, "--resume", run_dir, "--workers", 0, "--report_freq", 1)
        step = f"epoch {at % 2} step 1"  # the first of its three
        process.wait_until(lambda at=at: epochs_done(run_dir) >= at)
        process.wait_until(lambda step=step, own=process: step in own.output("err"))
        process.signal(signal.SIGTERM)
        outcome = process.wait()
        assert outcome.code == 128 + signal.SIGTERM, outcome
        assert "meter" in torch.load(run_dir / "checkpoint.pt", weights_only=True)
    outcome = run(SEARCH, "--resume", run_dir, timeout=300)
    assert outcome.code == 0, outcome
    assert_same_result(run_dir, undisturbed[0])


@pytest.mark.slow
def test_an_image_that_cannot_be_read_stops_the_search_saved_and_it_goes_on(tmp_path):
    """Whichever sample it is in: the weights' or the alphas'."""
    folder = write_images(tmp_path / "images", val=1)
    options = options_for(folder, tmp_path / "calm", "--image_size", 32, "--workers", 0)
    assert run(SEARCH, *options).code == 0
    train = open_folders(str(folder), 32)[0]
    seed = utils.derive_seed(2, 2)
    for name, part in zip(("weights", "alphas"),
                          search_parts.stratified_split(train.samples, train.classes, 0.5, 0.34, seed)):
        path, save = Path(part[0][0]), tmp_path / name
        content = path.read_bytes()
        process = start(SEARCH, *options_for(folder, save, "--image_size", 32, "--workers", 0))
        process.wait_until(lambda save=save: save.exists() and any(save.glob("*/checkpoint.pt")))
        path.write_bytes(content[:100])
        outcome, run_dir = process.wait(), the_run(save)
        assert str(path) in error_line(outcome, 1) and "continue with" in outcome.err, outcome
        path.write_bytes(content)
        outcome = run(SEARCH, "--resume", run_dir)
        assert outcome.code == 0, outcome
        assert_same_result(run_dir, the_run(tmp_path / "calm"))


@pytest.mark.slow
def test_two_processes_search_on_files_together(photographs, tmp_path):
    options = options_for(photographs, tmp_path, "--image_size", 64, "--workers", 0)
    outcomes = together(SEARCH, *options, environments=by_hand(2), cwd=tmp_path)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert (the_run(tmp_path) / "genotype.json").exists() and "on 2 x " in outcomes[0].err


@pytest.mark.slow
def test_a_folder_in_memory_with_the_imagenet_stem_is_trained_by_train_imagenet(tmp_path):
    folder = write_images(tmp_path / "images", val=2)
    outcome = run(SEARCH, *TINY, "--dataset", "folder", "--tmp_data_dir", folder, "--image_size", 40, "--stem",
                  "imagenet", "--epochs", 2, "--warmup_epochs", 1, "--batch_size", 6, "--save", tmp_path / "runs",
                  "--amp", "bf16", "--grad_checkpoint")
    assert outcome.code == 0, outcome
    command = shlex.split(outcome.err.splitlines()[-1].removeprefix("train it: python "))
    assert command[0] == "train_imagenet.py" and command[-2:] == ["--image_size", "40"]
    outcome = run(*command, "--epochs", 1, "--lr_scheduler", "cosine", "--init_channels", 4, "--layers", 2,
                  "--batch_size", 8, "--workers", 0, "--save", tmp_path / "runs")
    assert outcome.code == 0, outcome


# ---- bad input

@pytest.mark.parametrize("code, text, options", [
    (2, "--train_portion 0.8 and --valid_portion 0.34 overlap", "--train_portion 0.8"),
    (1, "--train_portion 0.05 leaves no image of class bear (it has 12)", "--train_portion 0.05"),
    (1, "12 images for the weights are fewer than a batch of 13", "--batch_size 13"),
    (1, "--stem imagenet needs images of 32x32 or more, not 31x31", "--image_size 31"),
    (2, "--init_channels 1 is too narrow for --stem imagenet", "--init_channels 1"),
    (2, "--cutout is for images in memory", "--cutout"),
    (1, "GiB of memory at 20000x20000 with --stem cifar", "--stem cifar --image_size 20000"),
    (1, "no folder none/train", "--tmp_data_dir none")])
def test_what_cannot_be_searched_on_is_refused(code, text, options, tmp_path):
    write_images(tmp_path / "images", val=1)
    outcome = run(SEARCH, *options_for("images", "runs"), *options.split(), cwd=tmp_path)
    assert text in error_line(outcome, code), outcome
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("grad_checkpoint", [False, True])
def test_the_memory_that_is_asked_for_is_a_lower_bound(grad_checkpoint):
    """Of what docs/performance.md measured: GB of a weight step at 32x32, batch 96, C = 16, by stage."""
    measured = {False: (2.44, 3.93, 4.52), True: (1.05, 0.94, 0.92)}[grad_checkpoint]
    stages = progressive.stage_table(5, 16, [6, 12], [0, 0], [0.1, 0.4, 0.7])
    for stage, gigabytes in zip(stages, measured):
        assert 0.5 < 96 * progressive.min_bytes(stage, 32, grad_checkpoint) / (gigabytes * 1e9) < 0.8


def test_what_exceeds_the_memory_is_refused_with_the_alternatives(monkeypatch):
    monkeypatch.setattr(utils, "device_memory", lambda device: 80 * 2**30)
    stage = progressive.stage_table(5, 16, [6, 12], [0, 0], [0.1, 0.4, 0.7])[0]
    args = Namespace(stem="cifar", batch_size=96, amp="off", grad_checkpoint=False)
    with pytest.raises(ValueError, match=r"stage 1 needs at least 8\d GiB of memory at 224x224 with --stem cifar, and "
                                         r"there are 80.0: use --stem imagenet, --grad_checkpoint, a smaller"):
        train_search.check_size(stage, 224, args, torch.device("cpu"))
    args.stem = "imagenet"
    train_search.check_size(stage, 224, args, torch.device("cpu"))
