"""fast/ against the definition: the same logits, gradients, running statistics and dropped values, and how it compiles.

Both get the same seed and channels-last images: dropout draws in the order of memory.
"""
import copy
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from vectors import assert_equals_vector, assert_same_tensors

import operations
from fast import known, pixels
from fast.depthwise import depthwise, depthwise_backward
from fast.supernet import _fast_cells, fast_cells
from genotypes import OPERATIONS, PRIMITIVES, Genotype, load, random_genotype
from model import NetworkCIFAR, NetworkImageNet
from model_search import Network, candidate

PDARTS = load("PDARTS")
SIZES = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 7), (8, 8), (9, 4), (15, 8), (16, 16), (12, 20), (32, 32)]


def draw_supernet(seed: int, layers: int = 3, channels: tuple = (2, 3, 4, 5, 8, 16)) -> Network:
    """Random candidates, 2 to 8 an edge, on one of these numbers of channels; it reduces after each third of the cells.
    """
    draw = random.Random(seed)
    K = draw.randint(2, 8)
    candidates = [[sorted(draw.sample(PRIMITIVES, K), key=PRIMITIVES.index) for _ in range(14)] for _ in range(2)]
    torch.manual_seed(seed)
    network = Network(draw.choice(channels), 10, layers, *candidates, skip_dropout=draw.choice([0, 0.4]))
    for alphas in (network.alphas_normal, network.alphas_reduce):
        nn.init.normal_(alphas)  # weights that differ
    return network.double()


def draw_images(height: int, width: int, B: int | None = None) -> torch.Tensor:
    """6 small images, whose norms need many, or 2 large ones."""
    B = B or (6 if height * width < 200 else 2)
    images = torch.randn(B, 3, height, width, dtype=torch.float64)
    return images.contiguous(memory_format=torch.channels_last)


def train(network: nn.Module, images: torch.Tensor, amp: bool = False) -> dict[str, torch.Tensor]:
    """Everything that one pass in training gives: logits, the gradients of what requires them, running statistics."""
    network.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        output = network(images)
    logits = [y for y in (output if isinstance(output, tuple) else (output,)) if y is not None]
    F.cross_entropy(torch.cat(logits).double(), torch.arange(len(images)).repeat(len(logits)) % 10).backward()
    return {**{f"logits {i}": y for i, y in enumerate(logits)}, **statistics(network),
            **{f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}}


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


def assert_equals_definition(network: nn.Module, images: torch.Tensor, monkeypatch, checkpoint=(False,)) -> None:
    """As on a CPU and as on a GPU, whose answer is forced on the CPU; each pass starts from the same statistics."""
    before = statistics(network)
    network.fast = False
    expected = train(network, images)
    network.fast = True
    for on_cpu, grad_checkpoint in itertools.product((True, False), checkpoint):
        monkeypatch.setattr(pixels, "on_cpu", lambda x: on_cpu)  # noqa: B023
        _fast_cells.clear()  # they are prepared for one device
        network.grad_checkpoint = grad_checkpoint
        for name, value in network.named_buffers():
            value.copy_(before[name])
        # Batch norm of nearly equal values, on a map of one pixel, blows rounding up.
        assert_same_tensors(train(network, images), expected, 1e-8 if images.size(-1) > 1 else 1e-6)


# ---- the supernet

@pytest.mark.parametrize("step", ["alpha", "weight", "both"])
@pytest.mark.parametrize("height, width", SIZES)
def test_a_supernet_trains_as_defined(height, width, step, monkeypatch):
    channels = (2, 3, 4, 5, 8, 16) if height * width < 100 else (2, 3, 5)  # twice and four times as many further on
    network = draw_supernet(100 * height + width + len(step), channels=channels)
    for name, p in network.named_parameters():
        p.requires_grad_(step == "both" or name.startswith("alphas") == (step == "alpha"))
    assert_equals_definition(network, draw_images(height, width), monkeypatch, checkpoint=(False, True))


@pytest.mark.parametrize("layers", [1, 2, 4, 7])
def test_a_supernet_of_any_depth_trains_as_defined(layers, monkeypatch):
    assert_equals_definition(draw_supernet(layers, layers), draw_images(8, 8), monkeypatch)


def test_a_recomputed_cell_moves_its_statistics_once():
    network = draw_supernet(0)
    network.grad_checkpoint = True
    train(network, draw_images(8, 8))
    assert {int(b) for name, b in network.named_buffers() if name.endswith("tracked")} == {1}


# ---- the evaluation networks

@pytest.mark.parametrize("height, width", SIZES)
def test_an_evaluation_network_trains_as_defined(height, width, monkeypatch):
    for C, drop_path_prob in ((2, 0.3), (5, 0.0), (8, 0.3)):
        torch.manual_seed(C)
        network = NetworkCIFAR(C, 10, 3, False, random_genotype(100 * height + C)).double()
        network.drop_path_prob = drop_path_prob
        assert_equals_definition(network, draw_images(height, width), monkeypatch)


@pytest.mark.parametrize("name", ["NASNet", "AmoebaNet", "DARTS_V2", "PDARTS"])
@pytest.mark.parametrize("network_class, size", [(NetworkCIFAR, 32), (NetworkImageNet, 224)])
def test_a_published_cell_trains_as_defined_with_its_auxiliary_head(network_class, size, name, monkeypatch):
    torch.manual_seed(0)
    network = network_class(4, 10, 3, True, load(name)).double()
    network.drop_path_prob = 0.3
    assert_equals_definition(network, draw_images(size, size, B=4 if size == 32 else 2), monkeypatch)


# ---- operations of one's own

class Mixer(nn.Sequential):
    """SiLU, a grouped convolution, a batch norm, which is a state: unlike anything in operations.py."""

    def __init__(self, C: int, stride: int, affine: bool):
        super().__init__(nn.SiLU(), nn.Conv2d(C, C, 3, stride, padding=1), nn.BatchNorm2d(C, affine=affine))


class Doubled(operations.SepConv):
    """A known operation's subclass that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Reduced(operations.FactorizedReduce):
    def forward(self, x):
        return 1 - super().forward(x)


class Shifted(nn.Identity):
    def forward(self, x):
        return x + 1


def swish_conv(C: int, stride: int, affine: bool) -> nn.Module:
    op = operations.SepConv(C, 3, stride, affine)
    op.op[0] = nn.SiLU()
    return op


OWN = {  # how each is made; none of them may be computed as the operation that it resembles
    "mixer": Mixer, "doubled": lambda C, stride, affine: Doubled(C, 3, stride, affine), "swish": swish_conv,
    "wide": lambda C, stride, affine: operations.SepConv(C, 7, stride, affine),
    "scaled": lambda C, stride, affine: operations.DilConv(C, 3, stride, True),
    "reduced": lambda C, stride, affine: Shifted() if stride == 1 else Reduced(C, C, affine),
    "max_pool_5x5": lambda C, stride, affine: nn.MaxPool2d(5, stride, padding=2),
    "avg_pool_padded": lambda C, stride, affine: nn.AvgPool2d(3, stride, padding=1),
    "noisy": lambda C, stride, affine: nn.Sequential(nn.AvgPool2d(3, stride, padding=1), nn.Dropout(0.3)),
}


@pytest.fixture
def own(monkeypatch):
    for name, make in OWN.items():
        monkeypatch.setitem(operations.TABLE, name, operations.Operation(make, is_pool="pool" in name))
    return list(OWN)


def as_defined(network: nn.Module, images: torch.Tensor, checkpoint=(False,)) -> None:
    """The same to 1e-10 of the largest entry."""
    network = network.double()
    before, results = statistics(network), []
    for fast, grad_checkpoint in ((False, False), *((True, again) for again in checkpoint)):
        network.fast, network.grad_checkpoint = fast, grad_checkpoint
        for name, value in network.named_buffers():
            value.copy_(before[name])
        results.append(train(network, images))
    for result in results[1:]:
        assert_same_tensors(result, results[0], 1e-10)


@pytest.mark.parametrize("step", ["alpha", "weight"])
def test_a_supernet_with_operations_of_ones_own_trains_as_defined(step, own):
    """Each of them beside a candidate that fast/ knows; statistics move once, dropout draws the same values."""
    torch.manual_seed(0)
    edges = [["none", own[edge % len(own)], PRIMITIVES[1 + edge % 7], own[(edge + 4) % len(own)]] for edge in range(14)]
    network = Network(4, 10, 3, edges, edges[::-1], skip_dropout=0.3)
    nn.init.normal_(network.alphas_normal), nn.init.normal_(network.alphas_reduce)
    for name, p in network.named_parameters():
        p.requires_grad_(name.startswith("alphas") == (step == "alpha"))
    as_defined(network, draw_images(9, 8), checkpoint=(False, True))
    assert {int(b) for name, b in network.named_buffers() if name.endswith("tracked")} == {1}


def test_an_evaluation_network_with_operations_of_ones_own_trains_as_defined(own):
    for first in range(0, len(own), 2):
        torch.manual_seed(first)
        ops = [own[(first + i) % len(own)] for i in range(4)] + ["sep_conv_3x3", "skip_connect", "max_pool_3x3"]
        genes = [(ops[i % len(ops)], i % 2) for i in range(8)]
        network = NetworkCIFAR(4, 10, 3, False, Genotype(genes, [2, 3, 4, 5], genes[::-1], [2, 3, 4, 5]))
        network.drop_path_prob = 0.3
        as_defined(network, draw_images(9, 8))


def test_fast_computes_every_published_operation_itself_and_none_of_ones_own(own):
    expected = {"skip_connect": "reduce", "max_pool_3x3": "max", "avg_pool_3x3": "avg"}
    for primitive in PRIMITIVES[1:]:
        kind = known.kind(candidate(primitive, 4, 2), 2)
        assert kind == expected.get(primitive, "convolution")
    assert known.kind(candidate("skip_connect", 4, 1), 1) == "skip"
    assert {known.kind(candidate(name, 4, stride), stride) for name in own for stride in (1, 2)} == {"own"}
    assert all(known.is_convolution(operations.build(name, 4, 2), affine=True) == ("conv" in name and "1x7" not in name
               or name == "skip_connect") for name in OPERATIONS)


@pytest.mark.parametrize("fast", [False, True])
def test_an_operation_of_another_shape_is_refused_with_its_values(fast, monkeypatch):
    monkeypatch.setitem(operations.TABLE, "flat", operations.Operation(
        lambda C, stride, affine: operations.SepConv(C, 3, 1, affine)))  # it forgets the stride
    network = Network(2, 10, 3, [["none", "flat"]] * 14, [["none", "flat"]] * 14)
    network.fast = fast
    message = r"'flat' with stride 2 made \(4, 4, 8, 8\) of \(4, 4, 8, 8\): it must be \(4, 4, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        network(torch.randn(4, 3, 8, 8))


# ---- precision and devices

@pytest.mark.parametrize("make", [
    lambda: Network(8, 10, 3, [PRIMITIVES] * 14, [PRIMITIVES] * 14, 0.3), lambda: NetworkCIFAR(8, 10, 3, False, PDARTS),
], ids=["supernet", "cifar"])
def test_autocast_gives_the_definitions_numbers_within_its_precision(make):
    """bfloat16 has 8 bits: its rounding, not a wrong sum, is all that may separate either from the exact gradients."""
    torch.manual_seed(0)
    network, images = make(), torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    results = {}
    for fast, amp in ((False, False), (False, True), (True, True)):
        same = copy.deepcopy(network)
        same.fast = fast
        results[fast, amp] = train(same, images, amp)
    exact, definition, ours = results.values()
    for name, tensor in exact.items():
        if tensor.is_floating_point():
            error, allowed = ((result[name] - tensor).norm() for result in (ours, definition))
            # A running mean is 0.1 times the mean of values of size 1, which may well cancel out.
            size = 0.1 * tensor.numel() ** 0.5 if "running_mean" in name else tensor.norm()
            assert error <= 3 * allowed + 1e-2 * size, f"{name}: {error:.1e}, the definition's {allowed:.1e}"


FAKES_NEED_A_DRIVER = tuple(map(int, torch.__version__.split(".")[:2])) == (2, 9) and not torch.cuda.is_available()


@pytest.mark.parametrize("grad_checkpoint", [False, True])
@pytest.mark.skipif(FAKES_NEED_A_DRIVER, reason="this torch needs a driver for fake GPU tensors, too")
def test_no_tensor_stays_behind_on_the_cpu(grad_checkpoint, monkeypatch):
    """On fake GPU tensors, which have a device and a shape but no numbers, mixing devices is an error."""
    monkeypatch.setattr(pixels, "random_module", lambda device: torch)  # a GPU's own needs a driver
    with FakeTensorMode(), torch.device("cuda"):
        images = torch.randn(4, 3, 16, 16)
        in_turn = [sorted((PRIMITIVES * 6)[3 * edge:3 * edge + 3], key=PRIMITIVES.index) for edge in range(14)]
        supernet = Network(4, 10, 3, in_turn, in_turn, 0.3)  # with all operations at both strides
        supernet.grad_checkpoint = grad_checkpoint
        assert supernet(images).device.type == "cuda"
        for network in (NetworkCIFAR(4, 10, 3, False, PDARTS), NetworkImageNet(4, 10, 3, False, PDARTS)):
            network.drop_path_prob = 0.3
            assert network(images)[0].device.type == "cuda"


def test_a_network_that_moves_takes_its_fast_cells_along():
    network = draw_supernet(0)
    assert fast_cells(network) is fast_cells(network)
    assert fast_cells(network.to("meta"))[0].weight_order.device.type == "meta"


# ---- depthwise convolutions

@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_depthwise_gradients_are_autograds(k, stride, dilation):
    torch.manual_seed(0)
    for height, width in [*SIZES, (1, 6), (6, 1), (3, 2), (2, 5)]:
        x = draw_images(height, width, 2).repeat(1, 2, 1, 1).requires_grad_()
        kernel = torch.randn(6, 1, k, k, dtype=torch.float64, requires_grad=True)
        expected = F.conv2d(x, kernel, None, stride, dilation * (k // 2), dilation, groups=6)
        assert_equals_vector(depthwise(x, kernel, stride, dilation), expected, f"{height}x{width}")
        g = torch.randn_like(expected)
        expected = torch.autograd.grad(expected, (x, kernel), g)
        actual = depthwise_backward(g, x.detach(), kernel.detach(), stride, dilation)
        assert_same_tensors(dict(zip("xk", actual)), dict(zip("xk", expected)))
        only_x, none = depthwise_backward(g, x.detach(), kernel.detach(), stride, dilation, needs_kernel_grad=False)
        assert none is None
        assert_equals_vector(only_x, expected[0])


# ---- torch.compile

@pytest.mark.slow
@pytest.mark.parametrize("network_class, size", [(NetworkCIFAR, 32), (NetworkImageNet, 224)])
def test_networks_compile_as_one_graph_with_the_same_gradients(network_class, size):
    torch.manual_seed(0)
    eager = network_class(4, 10, 3, True, PDARTS).double()
    network = copy.deepcopy(eager)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    for call in (eager, torch.compile(network, fullgraph=True, backend="aot_eager")):
        logits, logits_aux = call(images)
        (logits.square().sum() + 0.4 * logits_aux.square().sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in eager.parameters()])
    assert_equals_vector(torch.cat([p.grad.flatten() for p in network.parameters()]), expected)


def graph_collector():
    """A list, and a backend for torch.compile that runs graphs as they are and puts them there."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward
    return graphs, backend


@pytest.mark.slow
def test_a_changing_drop_path_probability_does_not_recompile_each_epoch():
    """600 epochs have 600 probabilities, and torch.compile gives up after 8 graphs: one for any probability must do."""
    graphs, backend = graph_collector()
    network = NetworkCIFAR(4, 10, 1, False, PDARTS)
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for epoch in range(1, 5):
        network.drop_path_prob = 0.3 * epoch / 600
        compiled(torch.randn(2, 3, 16, 16))
    assert len(graphs) <= 2


@pytest.mark.slow
def test_supernet_cells_of_one_shape_share_a_graph():
    graphs, backend = graph_collector()
    candidates = [["skip_connect", "dil_conv_3x3"]] * 14
    network = Network(2, 10, 12, candidates, candidates)  # reduces in cells 4 and 8
    for i in (2, 3, 5):  # two of one shape, and another
        cell = fast_cells(network)[i]
        cell.mix = torch.compile(cell.mix, fullgraph=True, backend=backend)
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    assert len(graphs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("grad_checkpoint", [False, True])
def test_a_supernets_cell_compiles_as_one_graph_per_kind_of_step_whatever_the_skip_dropout(grad_checkpoint):
    graphs, backend = graph_collector()
    candidates = [["skip_connect", "dil_conv_3x3", "dil_conv_5x5"]] * 14  # two convolutions of one state
    torch.manual_seed(0)
    eager = Network(2, 10, 1, candidates, candidates).double()
    network = copy.deepcopy(eager)
    cell, = fast_cells(network)
    cell.mix = torch.compile(cell.mix, fullgraph=True, backend=backend)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weights = ("stem", "cells") if grad_checkpoint else "cells"  # checkpointed, an input needs a gradient
    for skip_dropout in (0.0, 0.3, 0.2, 0.1):
        for trained in ("alphas", weights):
            gradients = []
            for supernet in (eager, network):
                supernet.skip_dropout, supernet.grad_checkpoint = skip_dropout, grad_checkpoint
                for name, p in supernet.named_parameters():
                    p.requires_grad_(name.startswith(trained))
                supernet.zero_grad()
                supernet(images).square().sum().backward()
                gradients.append(torch.cat([p.grad.flatten() for p in supernet.parameters() if p.grad is not None]))
            if not skip_dropout:  # else they drop other values
                assert_equals_vector(gradients[1], gradients[0])
    passes = 2 if grad_checkpoint else 1
    assert len(graphs) <= 4 * passes  # dropout's rate becomes a variable once
