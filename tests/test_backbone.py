"""The network inside something larger: torch.hub's features_only, and the page's program on it."""
import re

import onnxruntime
import pytest
import torch
from scripts import ROOT, forget, run
from torchvision.ops import FeaturePyramidNetwork
from vectors import assert_same_tensors

import genotypes
import hubconf
from model import NetworkImageNet

PROGRAM = re.findall(r"```python\n(.*?)```", (ROOT / "docs/use.md").read_text(), re.DOTALL)[-1]


def full_and_backbone(tmp_path, layers=5, **options):
    """A network with both heads and 7 classes, and the backbone that has its weights from a file."""
    torch.manual_seed(0)
    full = NetworkImageNet(4, 7, layers, True, genotypes.load("random:3"))
    torch.save(full.state_dict(), tmp_path / "w.pt")
    return full, hubconf.pdarts_imagenet("random:3", init_channels=4, layers=layers, features_only=True,
                                         weights=tmp_path / "w.pt", **options)


def maps_of(full, images, layers):
    """What comes out of the stem or cell before each reduction, and of the last cell."""
    found, full.auxiliary_head = {}, None  # it needs larger images
    for name in ["stem1", *(f"cells.{i}" for i in range(layers))]:
        full.get_submodule(name).register_forward_hook(lambda _, inputs, y, name=name: found.update({name: y}))
    full(images)
    return [found["stem1" if i == 0 else f"cells.{i - 1}"] for i in (layers // 3, 2 * layers // 3, layers)]


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("training", [False, True])
def test_the_maps_are_the_full_networks_to_the_bit(layers, training, tmp_path):
    full, backbone = full_and_backbone(tmp_path, layers)
    full.fast = backbone.fast = False
    images = torch.randn(2, 3, 75, 50)
    expected = maps_of(full.train(training), images, layers)
    maps = backbone.train(training)(images)
    assert len(maps) == 3 and all(map(torch.equal, maps, expected))
    assert not any(name.startswith(("classifier", "auxiliary")) for name in backbone.state_dict())
    info = backbone.feature_info
    assert info.channels() == [y.size(1) for y in maps] and info.reduction() == [8, 16, 32]
    assert [y.shape[2:] for y in maps] == [(-(-75 // s), -(-50 // s)) for s in (8, 16, 32)]
    assert [entry["module"] for entry in info] == [
        "stem1" if i == 0 else f"cells.{i - 1}" for i in (layers // 3, 2 * layers // 3, layers)]


@pytest.mark.parametrize("layers", [2, 5])
def test_in_training_the_given_maps_keep_their_values_and_gradients_are_as_defined(layers, tmp_path):
    _, backbone = full_and_backbone(tmp_path, layers)
    pyramid, images = FeaturePyramidNetwork(backbone.feature_info.channels(), 8), torch.randn(2, 3, 75, 50)
    results = []
    for fast in (False, True):
        network, top = backbone.double(), pyramid.double()
        network.fast = fast
        network.zero_grad()
        torch.manual_seed(1)
        maps = network(images.double())
        sum(level.square().sum() for level in top(dict(zip("abc", maps))).values()).backward()
        results.append({**{f"map {i}": y.detach() for i, y in enumerate(maps)},
                        **{name: p.grad for name, p in network.named_parameters()}})
    assert all(y.min() < 0 for y in maps)  # no ReLU in place
    assert_same_tensors(results[1], results[0], 1e-8)
    assert all(grad.abs().sum() > 0 for grad in results[1].values())


def test_chosen_maps_come_in_their_order_and_cells_after_them_are_dropped(tmp_path):
    full, backbone = full_and_backbone(tmp_path, out_indices=(1, 0))
    images = torch.randn(1, 3, 64, 64)
    expected = maps_of(full.eval(), images, 5)
    assert all(map(torch.equal, backbone.eval()(images), [expected[1], expected[0]]))
    assert backbone.feature_info.reduction() == [16, 8] and len(backbone.cells) == 3  # 5 cells reduce in 1 and 3
    _, last = full_and_backbone(tmp_path, out_indices=[-1])
    assert torch.equal(last.eval()(images)[0], expected[2]) and len(last.cells) == 5


@pytest.mark.parametrize("out_indices", [(3,), (0, 1, 2, 3), (-4,), ()])
def test_an_index_beyond_the_last_map_is_refused_with_its_value(out_indices):
    with pytest.raises(ValueError, match=re.escape(f"out_indices {out_indices}: the network has 3 maps, use 0 to 2")):
        hubconf.pdarts_imagenet(init_channels=4, layers=3, features_only=True, out_indices=out_indices)


def test_a_finished_run_sets_the_backbones_sizes_and_its_classifier_is_left_out(tmp_path):
    full, _ = full_and_backbone(tmp_path)
    (tmp_path / "w.pt").rename(tmp_path / "weights.pt")
    (tmp_path / "args.json").write_text('{"kind": "imagenet", "args": {"epochs": 1}}')
    genotypes.save(genotypes.load("random:3"), tmp_path / "genotype.json")
    backbone = hubconf.pdarts_imagenet(weights=tmp_path, features_only=True)
    own = full.state_dict()
    assert len(backbone.cells) == 5
    assert all(torch.equal(value, own[name]) for name, value in backbone.state_dict().items())
    torch.save(backbone.state_dict(), tmp_path / "backbone.pt")  # one's own copy of it, which has no classifier
    hubconf.pdarts_imagenet("random:3", init_channels=4, layers=5, features_only=True, weights=tmp_path / "backbone.pt")


def test_onnx_runtime_gives_the_same_maps(tmp_path):
    _, backbone = full_and_backbone(tmp_path, layers=3)
    backbone(torch.randn(8, 3, 75, 50))  # its batch norms get statistics
    images = torch.randn(2, 3, 75, 50)
    torch.onnx.export(backbone.eval(), (images,), tmp_path / "backbone.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx")
    name = session.get_inputs()[0].name
    maps = session.run(None, {name: images.numpy()})
    assert len(maps) == 3
    for found, expected in zip(maps, backbone(images)):
        assert torch.tensor(found).sub(expected).abs().max() < 1e-5 * max(1, expected.abs().max())


def test_the_program_of_the_document_runs_as_printed(tmp_path):
    (tmp_path / "p-darts").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    outcome = run(tmp_path / "program.py", cwd=tmp_path, change=forget)
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines() == ["[192, 384, 768] [8, 16, 32]",  # 4 nodes of 48, 96 and 192 channels
                                        "[(2, 256, 19, 13), (2, 256, 10, 7), (2, 256, 5, 4)]"]
