"""The search: its two steps against the vectors, and the script as people run, break, stop and continue it."""
import json
import logging
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kill_loop import OPTIONS
from scripts import (
    MEASURED,
    ROOT,
    behind,
    epochs_done,
    error_line,
    figures,
    metrics,
    run,
    run_fresh,
    snapshot,
    start,
    the_run,
)
from vectors import WAYS, assert_equals_vector, load_state

import engine
import genotypes
import progressive
import train_search
from architect import Architect
from harness import checkpoints
from model import NetworkCIFAR
from model_search import Network

TINY = shlex.split("--init_channels 2 --layers 3 --add_layers 0 --add_layers 0 --device cpu")
SHORT = [*TINY, "--epochs", "1", "--warmup_epochs", "0"]
EPOCHS, WARMUP = 3, 1  # of kill_loop's search
# What a person can do about it: every message has one of these words.
MEND = re.compile(r"did you mean|leave|omit|fix|set |reduce |give|use |name |choose|"
                  r"lower|add |put |replace|make|remove|must|start|say |mv ")


# ---- what runs start from

@pytest.fixture(scope="module")
def images(data):
    return data[-1]


def options_for(images, save):
    """A search in which everything random takes part: crops, flips, cutout, skip dropout.

    A step an epoch on 8 images; the 16 others last for two alpha steps, so an epoch starts amid the validation stream.
    """
    return [*OPTIONS["train_search.py"], "--dataset", "folder", "--tmp_data_dir", images, "--save", save]


@pytest.fixture(scope="module")
def undisturbed(search):
    """The run directory of such a search that nobody stopped."""
    return search


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """The same search stopped in stage 2 by SIGTERM: its run directory and how it ended."""
    save = tmp_path_factory.mktemp("stopped")
    return stop(images, save, signal.SIGTERM, lines=EPOCHS + 1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A search on digits: its run directory and how it ended."""
    save = tmp_path_factory.mktemp("digits")
    outcome = run("train_search.py", *SHORT, "--batch_size", 325, "--report_freq", 1, "--save", save, change=figures)
    assert outcome.code == 0, outcome
    return the_run(save), outcome


def stop(images, save, number, lines):
    """Start the search, send it a signal once metrics.jsonl has that many lines; its run directory and outcome."""
    script = start("train_search.py", *options_for(images, save))
    script.wait_until(lambda: any(save.iterdir()) and epochs_done(the_run(save)) >= lines)
    script.signal(number)
    return the_run(save), script.wait()


def arrays(run_dir):
    """The content of alphas.npz; NumPy refuses pickles by default."""
    with np.load(run_dir / "alphas.npz") as file:
        return {name: file[name] for name in file.files}


def checkpoint(run_dir):
    return torch.load(run_dir / "checkpoint.pt", weights_only=True)


def same(a, b):
    """Are two checkpoints (nested containers of tensors and numbers) equal, bit for bit?"""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def assert_same_result(run_dir, expected):
    """Everything that two searches computed is equal, bit for bit."""
    assert metrics(run_dir) == metrics(expected)
    assert same({k: torch.from_numpy(v) for k, v in arrays(run_dir).items() if v.dtype.kind == "f"},
                {k: torch.from_numpy(v) for k, v in arrays(expected).items() if v.dtype.kind == "f"})
    for part in ("network", "optimizer", "alpha_optimizer"):
        assert same(checkpoint(run_dir)[part], checkpoint(expected)[part]), part
    for name in ("genotype.json", "genotypes.json"):
        assert (run_dir / name).read_bytes() == (expected / name).read_bytes()
    assert not list(run_dir.glob("*.tmp"))


def without_log(run_dir):
    """The files of a run that an error must leave as they are."""
    return {name: content for name, content in snapshot(run_dir).items() if name != "log.txt"}


def resumed(run_dir, *options):
    outcome = run("train_search.py", "--resume", run_dir, *options)
    assert outcome.code == 0, outcome
    return outcome


# ---- the two steps (SPEC section 2)

def test_processes_average_the_alphas_where_no_cell_is_normal(tmp_path):
    """With one cell, which reduces, the normal cell's alphas have no gradient."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = Network(2, 10, 1, [["skip_connect", "sep_conv_3x3"]] * 14, [["skip_connect", "sep_conv_3x3"]] * 14)
        before = {name: getattr(network, name).detach().clone() for name in ("alphas_normal", "alphas_reduce")}
        Architect(network, 6e-4, 1e-3, 5.0).step(torch.randn(4, 3, 8, 8), torch.arange(4))
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(network.alphas_normal, before["alphas_normal"])
    assert (network.alphas_reduce != before["alphas_reduce"]).any()


@pytest.mark.parametrize("fast, grad_checkpoint", WAYS)
def test_four_bilevel_steps_reproduce_the_vectors(golden, fast, grad_checkpoint):
    vectors = golden("bilevel_5ops.npz")
    candidates = json.loads(str(vectors["candidates"]))
    network = load_state(Network(4, 10, 5, candidates["normal"], candidates["reduce"]), vectors)
    network.fast, network.grad_checkpoint = fast, grad_checkpoint
    architect = Architect(network, 6e-4, 1e-3, 5.0)
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    optimizer = torch.optim.SGD(weights, float(vectors["learning_rate"]), 0.9, weight_decay=3e-4)
    for t in range(4):
        batches = {name: torch.from_numpy(vectors[name][t]) for name in (
            "alpha_images", "alpha_target", "weight_images", "weight_target")}
        alpha_loss = architect.step(batches["alpha_images"].double(), batches["alpha_target"])
        loss, _ = train_search.weight_step(
            network, optimizer, batches["weight_images"].double(), batches["weight_target"], 5.0)
        assert_equals_vector(alpha_loss, vectors["alpha_loss"][t])
        assert_equals_vector(loss, vectors["weight_loss"][t])
        assert_equals_vector(network.alphas_normal, vectors["alphas_normal"][t])
        assert_equals_vector(network.alphas_reduce, vectors["alphas_reduce"][t])
    state = network.state_dict()
    expected = {key.removeprefix("norm_after/"): vectors[key] for key in vectors.files if key.startswith("norm_after/")}
    assert set(expected) == {key for key, value in state.items()
                             if value.is_floating_point() and not key.startswith("alphas")}
    for key, norm in expected.items():
        assert_equals_vector(state[key].norm(), norm, key)
    for key in ("classifier.weight", "stem.0.weight"):
        assert_equals_vector(state[key], vectors[f"after/{key}"], key)


@pytest.fixture
def learner():
    """A small supernet with skip dropout, both its optimizers, and a batch."""
    torch.manual_seed(0)
    network = Network(2, 10, 3, [genotypes.PRIMITIVES] * 14, [genotypes.PRIMITIVES] * 14, skip_dropout=0.4)
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    return SimpleNamespace(
        network=network, architect=Architect(network, 6e-4, 1e-3, 5.0),
        optimizer=torch.optim.SGD(weights, 0.025, 0.9, weight_decay=3e-4),
        images=torch.randn(4, 3, 8, 8), target=torch.arange(4))


def split_parameters(network):
    """Copies of (alphas, weights)."""
    items = [(name, p.detach().clone()) for name, p in network.named_parameters()]
    return [{name: p for name, p in items if name.startswith("alphas") == alphas} for alphas in (True, False)]


def test_weight_steps_leave_the_alphas_alone(learner):
    for _ in range(3):  # then with momentum and old gradients
        learner.architect.step(learner.images, learner.target)
        alphas, weights = split_parameters(learner.network)
        train_search.weight_step(learner.network, learner.optimizer, learner.images, learner.target, 5.0)
        assert same(split_parameters(learner.network)[0], alphas)
        assert not same(split_parameters(learner.network)[1], weights)


def test_alpha_steps_leave_the_weights_alone(learner):
    for _ in range(3):
        train_search.weight_step(learner.network, learner.optimizer, learner.images, learner.target, 5.0)
        alphas, weights = split_parameters(learner.network)
        learner.architect.step(learner.images, learner.target)
        assert same(split_parameters(learner.network)[1], weights)
        changed = split_parameters(learner.network)[0]
        assert not torch.equal(changed["alphas_normal"], alphas["alphas_normal"])
        assert not torch.equal(changed["alphas_reduce"], alphas["alphas_reduce"])


def test_all_parameters_learn_again_after_either_step(learner):
    learner.architect.step(learner.images, learner.target)
    train_search.weight_step(learner.network, learner.optimizer, learner.images, learner.target, 5.0)
    assert all(p.requires_grad for p in learner.network.parameters())


@pytest.mark.parametrize("learn_alphas, expected", [(False, ["weight"] * 3), (True, ["alpha", "weight"] * 3)])
def test_an_epoch_touches_the_validation_stream_only_after_warm_up_and_alphas_go_first(
        learner, monkeypatch, learn_alphas, expected):
    steps = []
    train, valid = (learner.images, learner.target), (learner.images + 1, learner.target)

    def weight_step(model, optimizer, images, target, *rest):
        assert images is train[0]
        steps.append("weight")
        return torch.tensor(1.), torch.zeros(4, 10)

    def alpha_step(images, target):
        assert images is valid[0]
        steps.append("alpha")

    def next_valid():
        assert learn_alphas
        return valid

    monkeypatch.setattr(train_search, "weight_step", weight_step)
    architect = SimpleNamespace(step=alpha_step, model=learner.network, scaler=None)
    source = SimpleNamespace(train_batches=[train] * 3, valid_batches=SimpleNamespace(next=next_valid))
    args = train_search.get_args_parser().parse_args([])
    stage = progressive.stage_table(5, 16, [6, 12], [0, 0], [0.1, 0.4, 0.7])[0]
    epoch = args.warmup_epochs if learn_alphas else args.warmup_epochs - 1
    train_search.search_epoch(stage, epoch, architect, learner.optimizer, source, engine.Meter("", 3, 50), args)
    assert steps == expected


def test_learning_rate_follows_the_cosine_in_all_25_epochs():
    for e in range(25):
        assert math.isclose(engine.cosine(0.025, 0.0, e, 25), 0.025 * (1 + math.cos(math.pi * e / 25)) / 2)
        lower = 0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * e / 25)) / 2
        assert math.isclose(engine.cosine(0.025, 0.001, e, 25), lower)
    assert engine.cosine(0.025, 0.0, 0, 25) == 0.025


def test_sizes_of_a_found_cell_are_those_of_the_cifar_evaluation_network(golden):
    computed = golden("genotypes.json")["PDARTS"]["computed"]
    row = train_search.describe(None, genotypes.load("PDARTS"))
    assert row["parameters"] == computed["params_cifar10"] == 3_433_798  # SPEC section 5
    assert row["multiply_adds"] == computed["macs_cifar10"]
    assert round(row["multiply_adds"] / 1e6, 1) == 532.2


# ---- what a run leaves

def test_a_run_directory_holds_what_the_issue_lists(digits):
    run_dir, _ = digits
    assert re.fullmatch(r"search-try-\d{8}-\d{6}", run_dir.name)
    assert {"log.txt", "args.json", "metrics.jsonl", "alphas.npz", "checkpoint.pt", "genotypes.json",
            "genotype.json"} <= {path.name for path in run_dir.iterdir()}


def test_args_json_records_options_versions_device_and_commit(digits):
    run_dir, _ = digits
    record = json.loads((run_dir / "args.json").read_text())
    args = record["args"]
    assert (args["dataset"], args["epochs"], args["add_layers"]) == ("digits", 1, [0, 0])
    assert args["dropout_rate"] == [0.1, 0.4, 0.7]  # without the option: the published command's
    assert (args["batch_size"], args["learning_rate"], args["arch_learning_rate"]) == (325, 0.025, 6e-4)
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["numpy"] == np.__version__
    assert "CPU" in record["device"].upper()
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "--verify", "-q", "HEAD"], capture_output=True, text=True)
    assert (record["git"] or "").startswith(head.stdout.strip())


def test_metrics_have_one_object_per_epoch_with_all_fields(digits):
    run_dir, _ = digits
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["stage"], r["epoch"]) for r in records] == [(1, 0), (2, 0), (3, 0)]
    for record in records:
        assert set(record) == {"stage", "epoch", "lr", "skip_dropout", "train_loss", "train_acc", "valid_loss",
                               "valid_acc", "skips", "alpha_steps", "entropy", "lead", "clear_edges", "displacement",
                               "drift", *MEASURED}
        assert all(math.isfinite(value) for value in record.values())  # all epochs are among a stage's last 4
        assert 0 <= record["train_acc"] <= 100 and 0 <= record["valid_acc"] <= 100 and 0 <= record["skips"] <= 8
        assert all(record[name] > 0 for name in ("train_loss", "valid_loss", *MEASURED))
        assert record["images_per_second"] * record["seconds"] >= 648  # int(0.5 * 1297); seconds count validation


def test_the_log_has_a_line_every_report_freq_steps_and_names_the_device(digits):
    run_dir, outcome = digits
    text = (run_dir / "log.txt").read_text()
    assert len(re.findall(r"stage 1 epoch 0 step \d", text)) == 2  # 648 images, 325 a step
    assert "CPU" in text.splitlines()[0]
    assert all(line.split(" ", 2)[2] in outcome.err for line in text.splitlines())  # a date and a time in front


def test_a_search_says_at_the_end_of_each_stage_how_decided_its_choices_are_and_how_far_its_alphas_moved(digits):
    """Two steps of 6e-4 move an alpha by about 0.001, so no winner can lead by a tenth; entropy stays all but 1."""
    run_dir, outcome = digits
    page = (run_dir / "report.html").read_text()
    for record in metrics(run_dir):
        assert record["alpha_steps"] == 2 and 0.999 < record["entropy"] <= 1 and 0 <= record["lead"] < 0.1
        assert record["clear_edges"] == 0
        moved = f"displacement {record['displacement']:.2f} times a random walk's, drift {record['drift']:.4f} "
        assert re.search(rf"stage {record['stage']}: 2 alpha steps; .* 0 of 28 edges; {re.escape(moved)}.*\n"
                         ".*not that a search with another seed shares it", outcome.err)
        assert f"<td>{record['displacement']:.2f}</td><td>{record['drift']:.4f}</td>" in page
    assert "0 of 28" in page and "not that a search with another seed shares it" in page


def test_without_warm_up_the_displacement_is_that_from_the_initial_alphas(digits):
    """Its first step moves every alpha by the learning rate; two equal steps go sqrt(2) times as far as a walk's."""
    for record in metrics(digits[0]):
        assert 0 < record["displacement"] < 2 ** 0.5 + 1e-3


def test_alpha_steps_are_those_since_warm_up_in_each_stage(undisturbed):
    assert [record["alpha_steps"] for record in metrics(undisturbed)] == [0, 1, 2] * 3  # a step an epoch


def test_an_epoch_without_alpha_steps_has_no_displacement_and_the_others_measure_from_the_end_of_warm_up(undisturbed):
    alphas = arrays(undisturbed)
    for record in metrics(undisturbed):
        if not record["alpha_steps"]:
            assert record["displacement"] is record["drift"] is None
            continue
        rows = np.concatenate([alphas[f"stage{record['stage']}_{cell}"] for cell in ("normal", "reduce")], axis=1)
        moved = rows[record["epoch"]].astype(float) - rows[WARMUP - 1]  # (28, K)
        displacement = (moved - moved.mean(1, keepdims=True)).std() / (6e-4 * record["alpha_steps"] ** 0.5)
        assert record["displacement"] == pytest.approx(displacement)


@pytest.mark.parametrize("record", [{"stage": 1}, {"stage": 1, "alpha_steps": 3900, "entropy": 0.5, "lead": 0.2,
                                                   "clear_edges": 20}])
def test_a_stage_recorded_before_these_measures_is_logged_without_them(record, caplog):
    with caplog.at_level(logging.INFO, logger="pdarts"):
        train_search.log_choices(record)
    assert ("20 of 28 edges" in caplog.text) is ("lead" in record) and "displacement" not in caplog.text


def test_alphas_with_a_learning_rate_of_0_have_no_displacement(tmp_path):
    outcome = run("train_search.py", *SHORT, "--arch_learning_rate", 0, "--save", tmp_path)
    assert outcome.code == 0 and "displacement" not in outcome.err.replace('"displacement": null', ""), outcome
    assert all(record["displacement"] is record["drift"] is None for record in metrics(the_run(tmp_path)))
    assert "<td>–</td><td>–</td>" in (the_run(tmp_path) / "report.html").read_text()


def test_the_last_lines_printed_are_genotype_cost_and_the_next_command(digits):
    run_dir, outcome = digits
    genotype, cost, command = (outcome.out + outcome.err).splitlines()[-3:]
    assert str(genotypes.load(str(run_dir))) in genotype
    assert re.search(r"[\d.]+ CPU-hours", cost) and re.search(r"[\d.]+ CPU-days|[\d.]+ days", cost)
    words = shlex.split(command[command.index("python train_cifar.py"):])
    assert words[words.index("--arch") + 1] == str(run_dir) and words[words.index("--dataset") + 1] == "digits"


def test_alphas_npz_has_both_matrices_of_every_epoch_and_each_stages_candidates(undisturbed):
    content = arrays(undisturbed)
    for stage, K in ((1, 8), (2, 5), (3, 3)):
        for cell in ("normal", "reduce"):
            assert content[f"stage{stage}_{cell}"].shape == (EPOCHS, 14, K)
            assert content[f"stage{stage}_{cell}_candidates"].shape == (14, K)


@pytest.mark.parametrize("cell", ["normal", "reduce"])
def test_each_stage_has_the_candidates_that_the_last_alphas_of_the_one_before_leave(undisturbed, cell):
    content = arrays(undisturbed)
    candidates = [genotypes.PRIMITIVES] * 14
    for stage, num_drop in ((1, 3), (2, 2)):
        assert content[f"stage{stage}_{cell}_candidates"].tolist() == candidates
        probs = F.softmax(torch.from_numpy(content[f"stage{stage}_{cell}"][-1]), dim=-1).tolist()
        candidates = progressive.prune(candidates, probs, num_drop)
    assert content[f"stage3_{cell}_candidates"].tolist() == candidates


def test_warm_up_leaves_the_alphas_as_initialised_and_later_epochs_move_them(undisturbed):
    initial = []
    for stage in (1, 2, 3):
        for cell in ("normal", "reduce"):
            alphas = arrays(undisturbed)[f"stage{stage}_{cell}"]
            assert WARMUP == 1 and 5e-4 < alphas[0].std() < 2e-3  # 1e-3 * N(0, 1), as initialised
            assert all((alphas[e] != alphas[e - 1]).all() for e in range(WARMUP, EPOCHS))
            initial.append(alphas[0, :, :3])
    assert len({a.tobytes() for a in initial}) == 6  # every stage starts afresh


def test_learning_rate_and_skip_dropout_of_every_epoch_follow_the_formulas(undisturbed):
    for record in metrics(undisturbed):
        e, p = record["epoch"], {1: 0.1, 2: 0.4, 3: 0.7}[record["stage"]]
        assert math.isclose(record["lr"], 0.025 * (1 + math.cos(math.pi * e / EPOCHS)) / 2)
        expected = p * (EPOCHS - e - 1) / EPOCHS if e < WARMUP else p * math.exp(-0.2 * (e - WARMUP))
        assert math.isclose(record["skip_dropout"], expected)


def test_the_checkpoint_loads_without_pickled_code_and_its_optimizers_have_the_published_settings(undisturbed):
    state = checkpoint(undisturbed)
    sgd, adam = state["optimizer"]["param_groups"][0], state["alpha_optimizer"]["param_groups"][0]
    assert (sgd["momentum"], sgd["weight_decay"]) == (0.9, 3e-4)
    assert sgd["lr"] == metrics(undisturbed)[-1]["lr"]  # what was logged was used
    assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (6e-4, (0.5, 0.999), 1e-3)
    for cell in ("normal", "reduce"):
        assert (state["network"][f"alphas_{cell}"].numpy() == arrays(undisturbed)[f"stage3_{cell}"][-1]).all()


def derive_from(run_dir):
    """(unrestricted genotype, M -> restricted genotype) of the alphas in a finished run's checkpoint."""
    state, content, rows = checkpoint(run_dir), arrays(run_dir), []
    for cell in ("normal", "reduce"):
        rows += [content[f"stage3_{cell}_candidates"].tolist(),
                 F.softmax(state["network"][f"alphas_{cell}"], dim=-1).tolist()]
    return progressive.derive_genotype(*rows), progressive.restrict_skip_connects(*rows)


def test_genotypes_json_has_the_unrestricted_cell_and_every_limit_with_sizes(undisturbed, tmp_path):
    run_dir = shutil.copytree(undisturbed, tmp_path / "run")
    state = checkpoint(run_dir)  # alphas that find skip-connects everywhere
    for edge, names in enumerate(arrays(run_dir)["stage3_normal_candidates"].tolist()):
        if "skip_connect" in names:
            state["network"]["alphas_normal"][edge, names.index("skip_connect")] = 3 + edge / 10
    checkpoints.save(run_dir, state)
    resumed(run_dir)
    unrestricted, restricted = derive_from(run_dir)
    expected = [(None, unrestricted), *restricted.items()]
    rows = json.loads((run_dir / "genotypes.json").read_text())
    assert len(rows) == len(expected) > 3
    for row, (max_skip, genotype) in zip(rows, expected, strict=True):
        assert row["max_skip"] == max_skip and genotypes.parse(row["genotype"]) == genotype
        assert row["skips"] == [op for op, _ in genotype.normal].count("skip_connect")
        assert max_skip is None or row["skips"] <= max_skip
        network = NetworkCIFAR(36, 10, 20, False, genotype)
        assert row["parameters"] == sum(p.numel() for p in network.parameters())
    assert restricted[2] == genotypes.load(str(run_dir))  # M = 2 is the recommended one


@pytest.mark.parametrize("which", ["undisturbed", "digits"])
def test_genotype_json_is_a_cell_of_the_final_alphas_with_at_most_two_skips(which, request):
    run_dir = request.getfixturevalue(which)
    run_dir = run_dir[0] if which == "digits" else run_dir
    genotype = genotypes.load(str(run_dir / "genotype.json"))
    unrestricted, restricted = derive_from(run_dir)
    assert genotype in (unrestricted, *restricted.values()) and genotype.reduce == unrestricted.reduce
    assert sum(op == "skip_connect" for op, _ in genotype.normal) <= 2
    skips = [op for op, _ in unrestricted.normal].count("skip_connect")
    assert metrics(run_dir)[-1]["skips"] == skips == json.loads((run_dir / "genotypes.json").read_text())[0]["skips"]


def test_bf16_runs_on_the_cpu(images, tmp_path):
    outcome = run("train_search.py", *options_for(images, tmp_path), *SHORT[-4:], "--amp", "bf16")
    assert outcome.code == 0, outcome
    assert all(math.isfinite(record["train_loss"]) for record in metrics(the_run(tmp_path)))
    genotypes.load(str(the_run(tmp_path)))


# ---- the published command

ANY_CIFAR = """
import torchvision
torchvision.datasets.cifar.check_integrity = lambda *args, **kwargs: True  # the files are not the real ones
"""


def write_cifar(root, classes, count):
    """Files in the format of CIFAR-10 or CIFAR-100, with `count` images each."""
    random = np.random.default_rng(0)
    folder, files, labels, meta, names = {
        10: ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels", "batches.meta",
             "label_names"),
        100: ("cifar-100-python", ["train", "test"], "fine_labels", "meta", "fine_label_names")}[classes]
    (root / folder).mkdir(parents=True)
    for file in files:
        (root / folder / file).write_bytes(pickle.dumps({
            "data": random.integers(256, size=(count, 3072), dtype=np.uint8),
            labels: random.integers(classes, size=count).tolist()}))
    (root / folder / meta).write_bytes(pickle.dumps({names: [f"class {i}" for i in range(classes)]}))


@pytest.mark.slow
@pytest.mark.parametrize("name, classes, extra", [("cifar10", 10, ""), ("cifar100", 100, "--cifar100")])
def test_the_published_command_works_word_for_word(tmp_path, name, classes, extra):
    published = ("--tmp_data_dir DIR --save log_path --add_layers 6 --add_layers 12 --dropout_rate 0.1 "
                 "--dropout_rate 0.4 --dropout_rate 0.7 --note note_of_this_run")
    write_cifar(tmp_path / "DIR", classes, count=8)
    outcome = run_fresh(behind(ANY_CIFAR, tmp_path), ROOT / "train_search.py", *shlex.split(f"{published} {extra}"),
                        "--epochs", 1, "--warmup_epochs", 0, "--init_channels", 2, "--layers", 1, "--device", "cpu",
                        cwd=tmp_path)
    assert outcome.code == 0, outcome
    run_dir = the_run(tmp_path / "log_path")
    assert run_dir.name.startswith("search-note_of_this_run-")
    weights = checkpoint(run_dir)["network"]
    assert len({key.split(".")[1] for key in weights if key.startswith("cells.")}) == 1 + 12
    assert weights["classifier.bias"].shape == (classes,)
    assert [record["skip_dropout"] for record in metrics(run_dir)] == [0.1, 0.4, 0.7]
    assert json.loads((run_dir / "args.json").read_text())["args"]["dataset"] == name
    command = shlex.split(outcome.err.splitlines()[-1].split("train it: ")[1])
    assert command[:8] == ["python", "train_cifar.py", "--tmp_data_dir", "DIR", "--dataset", name, "--arch",
                           f"log_path/{run_dir.name}"]


OTHER_PUBLISHED = """--workers 4 --batch_size 8 --learning_rate 0.02 --learning_rate_min 0.001 --momentum 0.8
    --weight_decay 1e-4 --report_freq 1 --epochs 3 --init_channels 2 --layers 2 --cutout --cutout_length 4 --seed 3
    --drop_path_prob 0.2 --grad_clip 4 --train_portion 0.4 --arch_learning_rate 1e-3 --arch_weight_decay 1e-2
    --add_width 1 --add_width 2 --add_width 4 --add_layers 0 --add_layers 0 --add_layers 1"""


@pytest.fixture(scope="module")
def other(images, tmp_path_factory):
    """A search with all other published options and two epochs of warm-up: its run directory."""
    save = tmp_path_factory.mktemp("other")
    outcome = run("train_search.py", *OTHER_PUBLISHED.split(), "--dataset", "folder", "--tmp_data_dir", images,
                  "--image_size", 8, "--warmup_epochs", 2, "--device", "cpu", "--save", save)
    assert outcome.code == 0, outcome
    return the_run(save)


def test_the_other_published_options_reach_the_run(other):
    state, lines = checkpoint(other), (other / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    sgd, adam = state["optimizer"]["param_groups"][0], state["alpha_optimizer"]["param_groups"][0]
    assert (sgd["momentum"], sgd["weight_decay"], adam["lr"], adam["weight_decay"]) == (0.8, 1e-4, 1e-3, 1e-2)
    expected = [0.001 + 0.019 * (1 + math.cos(math.pi * e / 3)) / 2 for e in range(3)]
    assert [record["lr"] for record in records[:3]] == pytest.approx(expected)
    assert state["network"]["stem.0.weight"].shape[0] == 3 * (2 + 4)  # stage 3 adds 4 to --init_channels 2
    assert len({key.split(".")[1] for key in state["network"] if key.startswith("cells.")}) == 2 + 1
    # int(0.4 * 24) = 9 images: one batch of 8, the one image left over can't be normalised
    assert re.findall(r"stage 1 epoch 0 step (\d+)", (other / "log.txt").read_text()) == ["1"]


def test_the_published_drop_path_probability_is_accepted_and_help_says_that_nothing_uses_it(other):
    help_text = " ".join(train_search.get_args_parser().format_help().split())
    assert "--drop_path_prob DROP_PATH_PROB unused, as in the published search; default: 0.3" in help_text
    assert json.loads((other / "args.json").read_text())["args"]["drop_path_prob"] == 0.2


def test_all_warm_up_epochs_have_the_same_alphas(other):
    for name, alphas in arrays(other).items():  # the 2 cells of stages 1, 2 are reductions
        if alphas.dtype.kind == "f":
            assert (alphas[0] == alphas[1]).all(), name
            assert (alphas[2] != alphas[1]).all() or name in ("stage1_normal", "stage2_normal"), name


def test_another_seed_starts_from_other_alphas(other, undisturbed):
    assert (arrays(other)["stage1_normal"][0] != arrays(undisturbed)["stage1_normal"][0]).all()


# ---- kill, stop, continue

@pytest.mark.slow
def test_a_search_killed_at_any_moment_continues_to_the_same_result(images, undisturbed, tmp_path):
    script = start("train_search.py", *options_for(images, tmp_path))
    script.wait_until(lambda: list(tmp_path.glob("*/args.json")))  # before there is anything to continue from
    moments = [(0, 0), (1, 0), (2, 0.05), (4, 0.1), (4, 0.2), (8, 0.02)]  # lines in metrics.jsonl, seconds after
    for lines, seconds in moments:
        script.wait_until(lambda: epochs_done(the_run(tmp_path)) >= lines)  # noqa: B023
        time.sleep(seconds)
        script.signal(signal.SIGKILL)
        assert script.wait().code == -signal.SIGKILL
        assert metrics(the_run(tmp_path)) == metrics(undisturbed)[:epochs_done(the_run(tmp_path))] \
            if epochs_done(the_run(tmp_path)) else True  # no torn, missing or doubled line
        script = start("train_search.py", "--resume", the_run(tmp_path))
    assert script.wait().code == 0
    assert_same_result(the_run(tmp_path), undisturbed)


@pytest.mark.slow
def test_a_kill_between_the_files_of_an_epoch_loses_and_doubles_nothing(stopped, undisturbed, tmp_path):
    """The checkpoint is newer than metrics.jsonl, and alphas.npz was never written."""
    run_dir = shutil.copytree(stopped[0], tmp_path / "run")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:-1]))
    (run_dir / "alphas.npz").unlink()
    (run_dir / "checkpoint.pt.tmp").write_bytes(b"half")
    resumed(run_dir)
    assert_same_result(run_dir, undisturbed)


def continuation(run_dir, outcome, code):
    """The command that a stopped run names in its last line."""
    assert outcome.code == code and "Traceback" not in outcome.err
    assert epochs_done(run_dir) < 3 * EPOCHS and not (run_dir / "genotype.json").exists()
    command = shlex.split(outcome.err.splitlines()[-1].split(": ")[-1])
    assert command[0] == "python" and command[-2:] == ["--resume", str(run_dir)]
    return command


def test_sigterm_ends_a_run_with_status_143_and_the_command_that_continues_it(stopped):
    continuation(*stopped, code=143)


def test_sigint_ends_a_run_with_status_130_and_a_command_that_continues_it(images, undisturbed, tmp_path):
    run_dir, outcome = stop(images, tmp_path, signal.SIGINT, lines=2)
    assert run(*continuation(run_dir, outcome, code=130)[1:]).code == 0
    assert_same_result(run_dir, undisturbed)


def test_resuming_a_finished_run_says_its_result_again(undisturbed, images, tmp_path):
    run_dir = shutil.copytree(undisturbed, tmp_path / "run")
    repeated = [*options_for(images, json.loads((run_dir / "args.json").read_text())["args"]["save"])]
    outcome = resumed(run_dir, *repeated, "--report_freq", 7, "--workers", 0)  # the same, or of no consequence
    assert str(genotypes.load(str(undisturbed))) in outcome.err
    assert_same_result(run_dir, undisturbed)


@pytest.mark.parametrize("option", [
    "--epochs 7", "--seed 9", "--learning_rate 0.1", "--dropout_rate 0 --dropout_rate 0 --dropout_rate 0",
    "--max_skip 1", "--add_layers 1 --add_layers 2", "--dataset digits", "--cifar100", "--amp bf16", "--batch_size 5",
    "--deterministic"])
def test_options_that_would_change_the_run_are_refused_on_resume(stopped, option):
    run_dir, _ = stopped
    before = snapshot(run_dir)
    outcome = run("train_search.py", "--resume", run_dir, *option.split())
    message = error_line(outcome, code=2)
    assert option.split()[0] in message and MEND.search(message)
    assert outcome.err.count("\n") == 1 and snapshot(run_dir) == before


# ---- bad input

NOWHERE = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # whatever is downloaded, fails at once


def assert_refused(code, value, *options, save, env=None):
    """One line that names the value and a mend, the exit status, and no run directory."""
    outcome = run("train_search.py", *SHORT, *options, "--save", save, env=env)
    message = error_line(outcome, code)
    assert value in message, message
    assert MEND.search(message.replace(value, "")), message
    assert sum(" per class" not in line for line in outcome.err.splitlines()) == 1, outcome.err  # what folders hold
    assert not save.exists() or not list(save.iterdir())


@pytest.mark.parametrize("options, right", [
    ("--lerning_rate 0.1", "--learning_rate"), ("--epoch=3", "--epochs"), ("--drop_rate 0.1", "--dropout_rate"),
    ("--add_layer 1", "--add_layers"), ("--initchannels 16", "--init_channels")])
def test_a_mistyped_option_is_an_error_that_names_the_right_one(tmp_path, options, right):
    outcome = run("train_search.py", *SHORT, *options.split(), "--save", tmp_path / "runs")
    hint = error_line(outcome, code=2).split("did you mean")[1]
    assert right in re.findall(r"--\w+", hint)
    assert outcome.err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option, count", [
    ("--add_layers", 1), ("--add_layers", 4), ("--add_width", 1), ("--add_width", 4), ("--dropout_rate", 1),
    ("--dropout_rate", 2), ("--dropout_rate", 4)])
def test_a_wrong_number_of_values_is_an_error_that_says_so(tmp_path, option, count):
    outcome = run("train_search.py", *([option, "0"] * count), "--save", tmp_path / "runs")
    message = error_line(outcome, code=2)
    assert option in message and str(count) in message and re.search("three", message)
    assert outcome.err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", [
    "--epochs 0", "--epochs -1", "--epochs 2.5", "--epochs nan", "--epochs many", "--batch_size 0",
    "--learning_rate -1", "--learning_rate nan", "--learning_rate inf", "--momentum -0.1", "--momentum 1",
    "--weight_decay nan", "--seed -1",
    "--grad_clip -5", "--layers 0", "--init_channels 0", "--report_freq 0", "--train_portion 0", "--train_portion 1",
    "--train_portion nan", "--arch_learning_rate nan", "--dropout_rate 1", "--dropout_rate -0.1", "--dropout_rate nan",
    "--add_layers -6", "--warmup_epochs -1", "--cutout_length -1",
    "--max_skip -1", "--workers -1", "--amp fp8",
    "--dataset mnist", "--device cpuu"])
def test_a_value_that_makes_no_sense_is_refused(tmp_path, option):
    name, value = option.split()
    assert_refused(1 if name == "--device" else 2, value, name, value, save=tmp_path / "runs")


@pytest.mark.parametrize("option", ["--compile", "--grad_checkpoint"])
def test_what_only_fast_can_do_is_refused_without_it(option, tmp_path):
    assert_refused(2, f"{option} is a part of fast/", option, "--fast", "off", save=tmp_path / "runs")


@pytest.mark.parametrize("epochs, warmup", [(2, 2), (2, 3), (25, 25)])
def test_warm_up_must_leave_epochs_for_the_alphas(tmp_path, epochs, warmup):
    assert_refused(2, f"--warmup_epochs {warmup}", "--epochs", epochs, "--warmup_epochs", warmup,
                   save=tmp_path / "runs")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "fashion_mnist"])
def test_data_that_is_missing_and_cannot_be_downloaded_is_named_with_its_folder(tmp_path, dataset):
    if dataset == "fashion_mnist" and os.path.isdir("/usr/share/datasets/fashion-mnist"):
        pytest.skip("Debian's package has it")
    assert_refused(1, str(tmp_path / "none"), "--dataset", dataset, "--tmp_data_dir", tmp_path / "none",
                   save=tmp_path / "runs", env=NOWHERE)


@pytest.mark.parametrize("options", [
    "--dataset folder", "--dataset cifar10", "--dataset cifar100", "--dataset svhn", "--cifar100"])
def test_a_data_set_without_its_folder_is_refused(tmp_path, options):
    outcome = run("train_search.py", *SHORT, *options.split(), "--save", "runs", cwd=tmp_path, env=NOWHERE)
    assert MEND.search(error_line(outcome, code=1))
    assert outcome.err.count("\n") == 1 and not (tmp_path / "runs").exists()


def missing(root):
    shutil.rmtree(root)
    return root


def empty(root):
    shutil.rmtree(root)
    root.mkdir()
    return root


def without_classes(root):
    for folder in (root / "train").iterdir():
        shutil.rmtree(folder)
    return root / "train"


def class_without_images(root):
    for path in (root / "train" / "cat").iterdir():
        path.unlink()
    return "cat"


def truncated_image(root):
    path = root / "train" / "bear" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


def text_image(root):
    path = root / "val" / "cat" / "1.png"
    path.write_text("no image")
    return path


def one_image(root):
    for path in [*(root / "train").glob("*/*")][1:]:
        path.unlink()
    for cat in root.glob("*/cat"):
        shutil.rmtree(cat)
    return "1 training image"


@pytest.mark.parametrize("damage", [
    missing, empty, without_classes, class_without_images, truncated_image, text_image])
def test_a_bad_image_folder_is_refused_by_name(images, tmp_path, damage):
    root = shutil.copytree(images, tmp_path / "images")
    value = damage(root)
    assert_refused(1, str(value), "--dataset", "folder", "--tmp_data_dir", root, save=tmp_path / "runs")


def test_a_folder_of_one_image_is_refused(images, tmp_path):
    root = shutil.copytree(images, tmp_path / "images")
    one_image(root)
    assert_refused(1, "only one class folder", "--dataset", "folder", "--tmp_data_dir", root, save=tmp_path / "runs")


def test_a_train_portion_that_leaves_too_few_images_is_refused(tmp_path):
    assert_refused(1, "1 ", "--train_portion", "0.9999", save=tmp_path / "runs")  # 1296 and 1 of 1297


@pytest.mark.parametrize("size", [1, 4, 7])
def test_images_smaller_than_two_reductions_allow_are_refused(tmp_path, size):
    assert_refused(1, str(size), "--image_size", size, save=tmp_path / "runs")


@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300])
def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("kept")
    outcome = run("train_search.py", *SHORT, "--save", tmp_path / where)
    message = error_line(outcome, code=1)
    assert str(tmp_path / where) in message and "--save" in message
    assert outcome.err.count("\n") == 1 and snapshot(tmp_path) == {"file": b"kept"}


def test_a_note_that_is_no_file_name_is_refused(tmp_path):
    outcome = run("train_search.py", *SHORT, "--note", "a/b", "--save", tmp_path / "runs")
    assert outcome.code in (1, 2) and "--note" in error_line(outcome, outcome.code)
    assert not list(tmp_path.rglob("search-*"))


def no_run(kind, tmp_path, run_dir):
    folder = tmp_path / "run"
    if kind != "missing":
        folder.mkdir()
    if kind == "no JSON":
        (folder / "args.json").write_text("{")
    if kind == "other JSON":
        (folder / "args.json").write_text("[1]")
    if kind == "file":
        return run_dir / "args.json"
    return folder


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "no JSON", "other JSON"])
def test_resume_of_something_that_is_no_run_is_refused(stopped, tmp_path, kind):
    folder = no_run(kind, tmp_path, stopped[0])
    before = snapshot(tmp_path)
    outcome = run("train_search.py", "--resume", folder)
    message = error_line(outcome, code=1)
    assert str(folder) in message and MEND.search(message) and outcome.err.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_resume_of_a_run_of_another_kind_is_refused(stopped, tmp_path):
    """Its checkpoint is whole, but not one of a search."""
    run_dir = shutil.copytree(stopped[0], tmp_path / "run")
    torch.save({"epoch": 3, "network": {}}, run_dir / "checkpoint.pt")
    before = without_log(run_dir)
    outcome = run("train_search.py", "--resume", run_dir)
    assert str(run_dir) in error_line(outcome, outcome.code) and outcome.code in (1, 2)
    assert without_log(run_dir) == before


def emptied(content):
    return b""


def replaced(content):
    return b"text"


def truncated(content):
    return content[:len(content) // 2]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, replaced])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_offered(stopped, tmp_path, damage):
    run_dir = shutil.copytree(stopped[0], tmp_path / "run")
    path = run_dir / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    before = without_log(run_dir)
    message = error_line(run("train_search.py", "--resume", run_dir), code=1)
    assert str(path) in message and "previous.pt" in message
    assert without_log(run_dir) == before


def test_the_offered_command_continues_from_the_checkpoint_before(stopped, undisturbed, tmp_path):
    run_dir = shutil.copytree(stopped[0], tmp_path / "a run")  # a path that a shell would split
    (run_dir / "checkpoint.pt").write_bytes(b"")
    message = error_line(run("train_search.py", "--resume", run_dir), code=1)
    subprocess.run(["sh", "-c", re.search(r"mv .*checkpoint\.pt'?", message).group()], check=True)
    resumed(run_dir)
    assert_same_result(run_dir, undisturbed)


def test_a_damaged_checkpoint_without_a_previous_one_says_to_start_anew(stopped, tmp_path):
    run_dir = shutil.copytree(stopped[0], tmp_path / "run")
    (run_dir / "previous.pt").unlink()
    (run_dir / "checkpoint.pt").write_bytes(b"")
    message = error_line(run("train_search.py", "--resume", run_dir), code=1)
    assert str(run_dir / "checkpoint.pt") in message and MEND.search(message)


def test_a_flipped_bit_is_refused_wherever_it_is(stopped, tmp_path):
    content, expected = (stopped[0] / "checkpoint.pt").read_bytes(), checkpoint(stopped[0])
    random, refused = np.random.default_rng(0), 0
    for position in [0, 3, 8, len(content) - 1, len(content) - 20, *random.integers(len(content), size=40)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.integers(8)
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        try:
            assert same(checkpoints.load(tmp_path, "search"), expected), position
        except ValueError:
            refused += 1
    assert refused == 45


class Malicious:
    """Code that runs when it is unpickled: makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["plain pickle", "torch.save", "within a checkpoint"])
def test_code_in_a_checkpoint_is_never_executed(stopped, tmp_path, form):
    run_dir, canary = shutil.copytree(stopped[0], tmp_path / "run"), tmp_path / "executed"
    path = run_dir / "checkpoint.pt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Malicious(canary)))
    else:
        state = checkpoint(run_dir) if form == "within a checkpoint" else {}
        torch.save({**state, "stage": Malicious(canary)}, path)
    outcome = run("train_search.py", "--resume", run_dir)
    assert str(path) in error_line(outcome, code=1)
    assert not canary.exists()


# ---- numbers that are none

def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(stopped, tmp_path):
    run_dir = shutil.copytree(stopped[0], tmp_path / "run")
    record, saved = json.loads((run_dir / "args.json").read_text()), checkpoints.load(run_dir, "search")
    for options in (record["args"], saved["args"]):
        options["learning_rate"] = 1e30
    (run_dir / "args.json").write_text(json.dumps(record))
    checkpoints.save(run_dir, saved)
    message = error_line(run("train_search.py", "--resume", run_dir), code=1)
    assert MEND.search(message) and "checkpoint" in message
    stage, epoch = map(int, re.search(r"stage (\d) epoch (\d).* step \d", message).groups())
    kept = checkpoint(run_dir)
    assert (stage - 1) * EPOCHS + epoch == epochs_done(run_dir) == len(kept["metrics"])
    assert all(value.isfinite().all() for value in kept["network"].values())


def test_a_fresh_search_that_diverges_says_where(images, tmp_path):
    options = [*options_for(images, tmp_path), "--train_portion", "0.5", "--learning_rate", "9e37"]
    message = error_line(run("train_search.py", *options), code=1)
    assert "stage 1 epoch 0" in message and "step 2" in message and "--learning_rate" in message


def test_no_checkpoint_of_weights_that_are_not_finite_is_kept(images, tmp_path):
    """The last step of an epoch diverges: its loss was still finite, and the next loss comes after the checkpoint."""
    options = [*options_for(images, tmp_path), "--epochs", "6", "--learning_rate", "9e37", "--weight_decay", "100"]
    error_line(run("train_search.py", *options), code=1)
    for path in the_run(tmp_path).glob("*.pt"):
        weights = torch.load(path, weights_only=True)["network"]
        assert all(value.isfinite().all() for value in weights.values()), path


def test_a_learning_rate_beyond_single_precision_is_refused(images, tmp_path):
    outcome = run("train_search.py", *options_for(images, tmp_path), "--learning_rate", "1e300")
    assert "learning_rate" in error_line(outcome, outcome.code) and outcome.code in (1, 2)


def test_too_little_memory_is_said_with_a_batch_size_to_try(tmp_path):
    outcome = run("train_search.py", *SHORT, "--init_channels", "100000000", "--save", tmp_path)
    assert "--batch_size" in error_line(outcome, code=1)


# ---- two at once

SAME_SECOND = """
import datetime
from harness import runs
class Now(datetime.datetime):
    now = classmethod(lambda cls, tz=None: cls(2030, 1, 2, 3, 4, 5))
runs.datetime = Now
"""


def test_runs_of_the_same_second_and_note_get_directories_of_their_own(images, tmp_path):
    program = behind(SAME_SECOND, tmp_path)
    options = [*options_for(images, tmp_path / "runs"), *SHORT[-4:], "--note", "twin"]
    scripts = [start(program, ROOT / "train_search.py", *options) for _ in range(2)]
    assert [script.wait().code for script in scripts] == [0, 0]
    one, other = sorted((tmp_path / "runs").iterdir())
    assert "twin-20300102-030405" in one.name and "twin-20300102-030405" in other.name
    assert_same_result(one, other)
    assert len(metrics(one)) == 3  # neither wrote into the other's
