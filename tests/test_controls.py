"""experiments/controls.py: what each control makes meaningless, and that nothing else changes."""
import itertools
import json

import numpy as np
import pytest
import torch
from scripts import error_line, metrics, run, the_run

import input_pipeline
import model_search
import progressive
from experiments import controls, dropped, planted
from genotypes import PRIMITIVES
from input_pipeline import search_parts
from operations import DilConv, SepConv

TINY = ["--dataset", "digits", "--device", "cpu", "--init_channels", 2, "--layers", 3, "--add_layers", 0,
        "--add_layers", 0, "--epochs", 2, "--warmup_epochs", 1, "--batch_size", 320, "--seed", 3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each control's run directory, and that of the unchanged search."""
    made = {}
    for name in (*controls.CONTROLS, "search"):
        save = tmp_path_factory.mktemp(name)
        script = ["train_search.py"] if name == "search" else ["experiments/controls.py", name]
        outcome = run(*script, *TINY, "--save", save)
        assert outcome.code == 0, outcome
        made[name] = the_run(save)
    return made


def alphas(run_dir) -> dict:
    with np.load(run_dir / "alphas.npz") as file:
        return dict(file)


@pytest.mark.slow
@pytest.mark.parametrize("control", controls.CONTROLS)
def test_a_control_is_stage_1_with_the_candidates_names_and_records_what_it_is(control, runs):
    assert [(record["stage"], record["epoch"]) for record in metrics(runs[control])] == [(1, 0), (1, 1)]
    written = alphas(runs[control])
    assert set(written) == {f"stage1_{cell}{end}" for cell in ("normal", "reduce") for end in ("", "_candidates")}
    assert written["stage1_normal"].shape == (2, 14, 8)
    assert written["stage1_normal_candidates"].tolist() == [list(PRIMITIVES)] * 14
    assert f"controls.py {control} --dataset digits" in json.loads((runs[control] / "args.json").read_text())["command"]
    assert (runs[control] / "genotype.json").exists() and (runs[control] / "report.html").exists()


@pytest.mark.slow
def test_the_plain_control_is_the_first_stage_of_the_search(runs):
    first = [record for record in metrics(runs["search"]) if record["stage"] == 1]
    assert metrics(runs["plain"]) == first and len(first) == 2
    written, whole = alphas(runs["plain"]), alphas(runs["search"])
    assert all((written[f"stage1_{cell}"] == whole[f"stage1_{cell}"]).all() for cell in ("normal", "reduce"))


@pytest.mark.slow
@pytest.mark.parametrize("control", controls.CONTROLS[1:])
def test_each_control_changes_where_the_alphas_go(control, runs):
    """They start alike, since the alphas are drawn before all weights."""
    ends = [alphas(runs[name])["stage1_normal"] for name in ("plain", control)]
    assert (ends[0][0] == ends[1][0]).all() and (ends[0][1] != ends[1][1]).mean() > 0.9


def test_shuffled_labels_are_the_same_labels_on_other_images():
    plain, shuffled = input_pipeline.load("digits", "data"), controls.load_shuffled("digits", "data")
    assert torch.equal(plain.train_images, shuffled.train_images)
    assert torch.equal(plain.train_target.bincount(), shuffled.train_target.bincount())
    # By chance, a label stays the same with probability 1/10: 1,297 images, five deviations.
    same = (plain.train_target == shuffled.train_target).float().mean()
    assert abs(same - 0.1) < 5 * (0.09 / len(plain.train_target)) ** 0.5
    assert torch.equal(plain.test_target, shuffled.test_target)
    assert torch.equal(shuffled.train_target, controls.load_shuffled("digits", "data").train_target)  # also resumed


def test_swapped_halves_are_the_same_images_in_the_other_role(monkeypatch):
    for module, name in ((controls.train_search, "make_stages"), (search_parts, "search_split")):
        monkeypatch.setattr(module, name, getattr(module, name))  # undone after the test
    data = input_pipeline.load("digits", "data")
    first, second = search_parts.search_split(data, 0.5, None)
    controls.apply("swapped-halves")
    swapped = search_parts.search_split(data, 0.5, None)
    for half, other in zip((second, first), swapped):
        assert torch.equal(half[0], other[0]) and torch.equal(half[1], other[1])


@pytest.fixture
def supernet(monkeypatch):
    """supernet(control): the supernet of stage 1 under this control."""
    monkeypatch.setattr(controls.train_search, "make_stages", controls.train_search.make_stages)
    monkeypatch.setattr(model_search, "build", model_search.build)

    def make(control: str) -> model_search.Network:
        controls.apply(control)
        torch.manual_seed(0)
        return model_search.Network(4, 10, 3, [PRIMITIVES] * 14, [PRIMITIVES] * 14)
    return make


@pytest.mark.parametrize("control, kind", [("plain", DilConv), ("noise", controls.Noise), ("twin", SepConv)])
def test_only_dil_conv_3x3_is_replaced_on_every_edge_of_every_cell(control, kind, supernet):
    network = supernet(control)
    for cell in network.cells:
        for i, edge in enumerate(cell.cell_ops):
            ops = dict(zip(edge.primitives, edge.m_ops))
            assert type(ops.pop("dil_conv_3x3")) is kind
            assert type(ops["dil_conv_5x5"]) is DilConv and type(ops["sep_conv_3x3"]) is SepConv
            source = i - (0, 2, 5, 9)[sum(i >= start for start in (2, 5, 9))]
            x = torch.randn(2, 4, 8, 8)
            op = dict(zip(edge.primitives, edge.m_ops))["dil_conv_3x3"]
            width = next(p for p in ops["sep_conv_3x3"].parameters()).shape[0]
            stride = 2 if cell.reduction and source < 2 else 1
            assert op(x.repeat(1, width // 4, 1, 1)).shape == (2, width, 8 // stride, 8 // stride)


def test_twins_are_equal_operations_with_weights_of_their_own(supernet):
    edge = supernet("twin").cells[0].cell_ops[0]
    one, other = (dict(zip(edge.primitives, edge.m_ops))[name] for name in ("sep_conv_3x3", "dil_conv_3x3"))
    assert str(one) == str(other)
    assert all(a.shape == b.shape and not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_noise_is_standard_normal_and_does_not_depend_on_the_image():
    noise = controls.Noise(stride=2)
    torch.manual_seed(0)
    first = noise(torch.zeros(8, 16, 32, 32))
    torch.manual_seed(0)
    assert torch.equal(first, noise(torch.ones(8, 16, 32, 32))) and not list(noise.parameters())
    # 32,768 values: five deviations of their mean, and of their variance.
    assert abs(first.mean()) < 5 / 32768 ** 0.5 and abs(first.var() - 1) < 5 * (2 / 32768) ** 0.5


@pytest.mark.parametrize("control", ["noise", "twin"])
def test_the_fast_path_trains_a_control_as_its_definition_does(control, supernet):
    network, images = supernet(control), torch.randn(4, 3, 8, 8)
    network.double()
    outputs = []
    for fast in (True, False):
        network.fast = fast
        network.zero_grad()
        torch.manual_seed(1)
        logits = network(images.double())
        logits.logsumexp(1).sum().backward()
        outputs.append((logits.detach(), network.alphas_normal.grad.clone(), network.alphas_reduce.grad.clone()))
    for one, other in zip(*outputs):
        if control == "twin":  # the noise of the two is not drawn in the same order
            assert torch.allclose(one, other)
        assert torch.isfinite(one).all() and one.abs().max() > 0


@pytest.mark.slow
def test_a_control_resumes(runs):
    before = (runs["noise"] / "metrics.jsonl").read_bytes()
    outcome = run("experiments/controls.py", "noise", "--resume", runs["noise"])
    assert outcome.code == 0 and (runs["noise"] / "metrics.jsonl").read_bytes() == before, outcome


@pytest.mark.parametrize("words, text", [([], "CONTROL"), (["nois"], "'nois'"), (["--dataset", "digits"], "CONTROL"),
                                         (["noise", "--epohs", "3"], "--epochs"), (["noise", "twin"], "twin")])
def test_bad_input_is_one_line(words, text):
    assert text in error_line(run("experiments/controls.py", *words), 2)


# ---- experiments/planted.py and dropped.py

@pytest.mark.slow
def test_what_became_of_a_planted_operation_is_counted_as_pruning_counts(runs):
    every = [alphas(run_dir) for run_dir in runs.values()]
    for written in every:
        rows = np.concatenate([written[f"stage1_{cell}"][-1] for cell in ("normal", "reduce")])
        kept = progressive.prune([list(PRIMITIVES)] * 28, rows.tolist(), 3)
        assert dropped.is_dropped(rows).tolist() == [[name not in names for name in PRIMITIVES] for names in kept]
        count, apart, others = planted.measure(rows)
        assert count == sum("dil_conv_3x3" not in names for names in kept)
        gap = rows[:, PRIMITIVES.index("dil_conv_3x3")] - rows[:, PRIMITIVES.index("sep_conv_3x3")]
        assert apart == pytest.approx(np.sqrt(np.mean(gap ** 2)))
        squares = (rows[:, :, None] - rows[:, None, :]) ** 2  # each pair twice
        assert 27 * others ** 2 + apart ** 2 == pytest.approx(squares.sum() / 2 / 28, rel=1e-5)


@pytest.mark.slow
def test_its_table_names_the_operation_in_the_place_of_dil_conv(runs, capsys):
    """A control that plants none, such as shuffled labels, has the operation itself."""
    names = ["noise", "twin", "shuffled-labels", "search"]
    planted.main(planted.get_args_parser().parse_args([str(runs[name]) for name in names]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["noise", "twin", "itself", "itself"]


@pytest.mark.slow
def test_each_kind_of_search_has_the_mean_counts_of_dropped_operations(runs, tmp_path, capsys):
    """The control called plain is an unchanged search, too."""
    kinds = {"noise": ["noise"], "P-DARTS": ["plain", "search"]}
    dropped.main(dropped.get_args_parser().parse_args(
        [str(runs[name]) for names in kinds.values() for name in names] + ["--plot", str(tmp_path / "dropped.svg")]))
    figure = (tmp_path / "dropped.svg").read_text()
    assert all(f">{word}<" in figure for word in ("noise (1)", "P-DARTS (2)", "none", "normal cell; dotted: by chance"))
    head, _, *lines = [[text.strip() for text in line.strip("|").split("|")]
                       for line in capsys.readouterr().out.splitlines()]
    assert head[3:] == list(PRIMITIVES) and len(lines) == 4
    cells = {"normal": "normal", "reduction": "reduce"}
    for line, (kind, cell) in zip(lines, itertools.product(kinds, cells)):
        counts = np.zeros(8)
        for name in kinds[kind]:
            kept = progressive.prune([list(PRIMITIVES)] * 14, alphas(runs[name])[f"stage1_{cells[cell]}"][-1].tolist(),
                                         3)
            counts += [sum(operation not in names for names in kept) for operation in PRIMITIVES]
        assert line[:3] == [kind, str(len(kinds[kind])), cell]
        assert line[3:] == [f"{count / len(kinds[kind]):.1f}" for count in counts]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["planted", "dropped"])
def test_a_search_that_has_not_ended_its_first_stage_is_refused(script, runs, tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    record = json.loads((runs["noise"] / "args.json").read_text())
    record["args"]["epochs"] = 9
    (folder / "args.json").write_text(json.dumps(record))
    (folder / "alphas.npz").write_bytes((runs["noise"] / "alphas.npz").read_bytes())
    outcome = run(f"experiments/{script}.py", folder)
    assert "has not ended its first stage: --resume it" in error_line(outcome, 1)
