"""experiments/ablation.py: the losses without each candidate, on a tiny supernet, and their order."""
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scripts import error_line, run, snapshot, the_run

from experiments import ablation

TINY = ["--dataset", "digits", "--device", "cpu", "--init_channels", 2, "--layers", 3, "--epochs", 1,
        "--warmup_epochs", 0, "--batch_size", 160, "--seed", 0]


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The run of stage 1 of a tiny search."""
    save = tmp_path_factory.mktemp("control")
    outcome = run("experiments/controls.py", "plain", *TINY, "--save", save, "--note", "digits-pdarts-0")
    assert outcome.code == 0, outcome
    return the_run(save)


@pytest.fixture
def out(control, tmp_path):
    """The --out of evidence.py, with that supernet and its run."""
    shutil.copytree(control, tmp_path / "runs" / control.name)
    (tmp_path / "supernets").mkdir()
    shutil.copyfile(control / "checkpoint.pt", tmp_path / "supernets" / "digits-pdarts-0.pt")
    return tmp_path


@pytest.mark.slow
def test_a_candidates_loss_is_that_of_the_supernet_without_it(out):
    """The definition, with softmax spelled out over the candidates that are left."""
    network, _ = ablation.read_supernet(out, "digits-pdarts-0")
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4)) for _ in range(2)]
    alphas = {cell: getattr(network, f"alphas_{cell}") for cell in ("normal", "reduce")}
    for alpha in alphas.values():
        alpha.data.mul_(1000)  # so that the candidates' probabilities differ
    # Fewer edges are enough: the loop is the same for all.
    for cell, alpha in alphas.items():
        before = alpha.detach().clone()
        measured = ablation.remove_each(network, cell, batches)
        assert measured["alphas"] == before.tolist() and torch.equal(alpha, before)
        for edge, k in ((0, 0), (5, 3), (13, 7)):
            left = torch.arange(8) != k
            probs = before.softmax(1)
            probs[edge] = 0
            probs[edge, left] = before[edge, left].exp() / before[edge, left].exp().sum()
            weights = {name: other.softmax(1) for name, other in alphas.items()} | {cell: probs}
            expected = [F.cross_entropy(forward(network, images, weights), target).item() for images, target in batches]
            assert measured["losses"][edge][k] == pytest.approx(np.mean(expected), rel=1e-5)


@torch.no_grad()
def forward(network, images, weights):
    """The supernet's definition, in training mode, with these probabilities."""
    s0 = s1 = network.stem(images)
    for cell in network.cells:
        s0, s1 = s1, cell(s0, s1, weights["reduce" if cell.reduction else "normal"])
    return network.classifier(s1.mean((2, 3)))


@pytest.mark.slow
def test_the_table_has_a_line_per_cell_and_is_measured_once(out):
    first = run("experiments/ablation.py", out, "--images", 20)
    assert first.code == 0 and "removing each candidate, on 20 test images" in first.err, first
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.out.splitlines()]
    assert [line[:3] for line in lines] == [["digits-pdarts-0", "normal", "20"], ["digits-pdarts-0", "reduction", "20"]]
    record = json.loads((out / "supernets" / "digits-pdarts-0.json").read_text())
    for line, cell in zip(lines, ("normal", "reduce")):
        alphas, losses = (np.array(record[cell][key]) for key in ("alphas", "losses"))
        edges = [stats.spearmanr(*pair).statistic for pair in zip(alphas, losses)]
        assert line[head.index("rank correlation")] == f"{np.mean(edges):.2f}"
        assert line[head.index("range over edges")] == f"{min(edges):.2f} to {max(edges):.2f}"
        edges = [stats.spearmanr(*pair).statistic for pair in zip(alphas[:, 4:], losses[:, 4:])]  # after 4 others
        assert line[head.index("convolutions")] == f"{np.mean(edges):.2f}"
    (out / "supernets" / "digits-pdarts-0.pt").unlink()  # records without weights are enough
    again = run("experiments/ablation.py", out)
    assert again.code == 0 and again.out == first.out and not again.err


def test_the_order_of_operations_and_that_of_edges_have_their_own_p():
    """What all edges prefer is no matter of edges; what each prefers on its own is one of both."""
    rng = np.random.default_rng(0)
    common = np.tile(rng.permutation(8), (14, 1)).astype(float)
    own = rng.permuted(common, axis=1)
    correlation, *_, by_operation, by_edge, within = ablation.describe({"alphas": common, "losses": common * 2 + 1})
    # By chance an order of 8 is the same in one of 40,320; all orders of edges are the same.
    assert (correlation, by_edge, within) == ("1.00", "1.0000", "1.0000") and float(by_operation) <= 0.0002
    assert ablation.describe({"alphas": own, "losses": own}) == [
        "1.00", "1.00 to 1.00", "1.00", "0.0001", "0.0001", "0.0001"]
    assert ablation.describe({"alphas": own, "losses": -own})[0] == "-1.00"


def damage_supernet(out):
    path = out / "supernets" / "digits-pdarts-0.pt"
    path.write_bytes(path.read_bytes()[:-1])


def leave_stage_1(out):
    checkpoint = ablation.checkpoints.read(out / "supernets" / "digits-pdarts-0.pt", "search")
    ablation.checkpoints.save(out, checkpoint | {"stage": 2})
    (out / "checkpoint.pt").rename(out / "supernets" / "digits-pdarts-0.pt")


@pytest.mark.slow
@pytest.mark.parametrize("change, text", [
    (damage_supernet, "digits-pdarts-0.pt is damaged or not from stage 1"),
    (leave_stage_1, "digits-pdarts-0.pt is damaged or not from stage 1"),
    (lambda out: (out / "supernets" / "digits-pdarts-0.json").write_text('{"images": 20, "lo'), "json is damaged"),
    (lambda out: (out / "supernets" / "digits-pdarts-0.json").write_text('{"images": 20, "loss": 1}'), "is damaged"),
    (lambda out: shutil.rmtree(out / "runs"), "has 0 runs search-digits-pdarts-0-TIME"),
    (lambda out: shutil.rmtree(out / "supernets"), "holds no supernets")])
def test_bad_input_is_one_line_and_nothing_is_overwritten(change, text, out):
    change(out)
    before = snapshot(out)
    assert text in error_line(run("experiments/ablation.py", out, "--images", 20), 1)
    assert snapshot(out) == before
