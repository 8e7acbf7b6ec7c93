"""The supernet and the evaluation networks against the vectors, and what SPEC says of their parts."""
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vectors import WAYS, assert_equals_vector, assert_gradient_norms_equal, load_state

import genotypes
from genotypes import OPERATIONS, PRIMITIVES, Genotype
from model import Cell, NetworkCIFAR, NetworkImageNet
from model_search import Network
from operations import FactorizedReduce, build, drop_path, dropout

PDARTS = genotypes.load("PDARTS")
FROM_INPUTS = [0, 1, 2, 3, 5, 6, 9, 10]  # edges from s0, s1: stride 2 in a reduction
FROM_NODES = [4, 7, 8, 11, 12, 13]  # stride 1 everywhere


def parameters(network: nn.Module) -> int:
    """The number of parameters, the auxiliary head not counted."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary_head."))


@pytest.mark.parametrize("fast, grad_checkpoint", WAYS)
@pytest.mark.parametrize("num_candidates, layers", [(8, 5), (5, 5), (3, 6)])
def test_supernet_reproduces_the_vectors(golden, num_candidates, layers, fast, grad_checkpoint):
    vectors = golden(f"supernet_{num_candidates}ops.npz")
    candidates = json.loads(str(vectors["candidates"]))
    network = load_state(Network(4, 10, layers, candidates["normal"], candidates["reduce"]), vectors)
    network.fast, network.grad_checkpoint = fast, grad_checkpoint
    images, target = torch.from_numpy(vectors["input"]).double(), torch.from_numpy(vectors["target"])
    logits = network(images)
    loss = F.cross_entropy(logits, target)
    loss.backward()
    assert_equals_vector(logits, vectors["logits_train"])
    assert_equals_vector(loss, vectors["loss"])
    assert_equals_vector(network.alphas_normal.grad, vectors["grad_alphas_normal"])
    assert_equals_vector(network.alphas_reduce.grad, vectors["grad_alphas_reduce"])
    assert_gradient_norms_equal(network, vectors)
    assert_equals_vector(network.eval()(images), vectors["logits_eval_after"])


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("file, network_class, cell, arguments", [
    ("cifar_pdarts", NetworkCIFAR, "PDARTS", (4, 10, 6, True)),
    ("cifar_darts_v2", NetworkCIFAR, "DARTS_V2", (6, 100, 5, False)),
    ("imagenet_pdarts", NetworkImageNet, "PDARTS", (8, 20, 6, True)),
])
def test_evaluation_network_reproduces_the_vectors(golden, file, network_class, cell, arguments, fast):
    vectors = golden(f"{file}.npz")
    network = load_state(network_class(*arguments, genotypes.load(cell)), vectors)
    network.fast = fast
    images, target = torch.from_numpy(vectors["input"]).double(), torch.from_numpy(vectors["target"])
    logits, logits_aux = network.eval()(images)
    assert logits_aux is None
    assert_equals_vector(logits, vectors["logits_eval"])
    logits, logits_aux = network.train()(images)
    assert_equals_vector(logits, vectors["logits_train"])
    assert (logits_aux is not None) == ("logits_aux" in vectors.files)
    loss = F.cross_entropy(logits, target)
    if logits_aux is not None:
        assert_equals_vector(logits_aux, vectors["logits_aux"])
        loss = loss + 0.4 * F.cross_entropy(logits_aux, target)
    assert_equals_vector(loss, vectors["loss"])
    loss.backward()
    assert_gradient_norms_equal(network, vectors)


def test_full_size_networks_have_the_published_keys_and_shapes(golden):
    published = golden("state_dict_keys.json")
    with torch.device("meta"):
        networks = {"cifar_PDARTS": NetworkCIFAR(36, 10, 20, True, PDARTS),
                    "imagenet_PDARTS": NetworkImageNet(48, 1000, 14, True, PDARTS)}
    for name, network in networks.items():
        assert {key: list(value.shape) for key, value in network.state_dict().items()} == published[name]


def test_released_cell_has_the_exact_sizes_of_the_paper_with_and_without_auxiliary_head():
    """SPEC section 5."""
    with torch.device("meta"):
        cifar, imagenet = NetworkCIFAR(36, 10, 20, True, PDARTS), NetworkImageNet(48, 1000, 14, True, PDARTS)
    assert (parameters(cifar), sum(p.numel() for p in cifar.parameters())) == (3_433_798, 3_910_224)
    assert (parameters(imagenet), sum(p.numel() for p in imagenet.parameters())) == (4_944_352, 6_206_664)


@pytest.mark.parametrize("height, width", [(13, 13), (15, 15), (13, 16), (16, 15)])
def test_odd_image_sizes_work_in_every_network(height, width):
    images = torch.randn(2, 3, height, width)
    supernet = Network(2, 10, 3, [PRIMITIVES] * 14, [PRIMITIVES] * 14, 0.3)
    logits = supernet(images)
    for network in (NetworkCIFAR(4, 10, 3, False, PDARTS), NetworkImageNet(4, 10, 3, False, PDARTS)):
        logits = logits + network(images)[0]
    logits.sum().backward()
    assert logits.shape == (2, 10) and logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in supernet.parameters())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("primitive", OPERATIONS)
def test_operations_keep_the_size_at_stride_1_and_halve_it_rounding_up_at_stride_2(primitive, stride, affine):
    op = build(primitive, 4, stride, affine)
    for height, width in ((8, 8), (7, 9), (1, 1)):
        size = op(torch.randn(2, 4, height, width)).shape
        assert size == (2, 4, math.ceil(height / stride), math.ceil(width / stride))
    assert all(m.bias is None for m in op.modules() if isinstance(m, nn.Conv2d))
    assert all(m.affine == affine for m in op.modules() if isinstance(m, nn.BatchNorm2d))


def test_operations_have_the_parameters_of_their_definition():
    """SPEC section 1 at C = 6 with affine batch norm: depthwise k*k*C, pointwise C*C, batch norm 2C, full 7*C*C."""
    C = 6
    once = {k: k * k * C + C * C + 2 * C for k in (3, 5, 7)}
    expected = {"max_pool_3x3": 0, "avg_pool_3x3": 0, "dil_conv_3x3": once[3], "dil_conv_5x5": once[5],
                "sep_conv_3x3": 2 * once[3], "sep_conv_5x5": 2 * once[5], "sep_conv_7x7": 2 * once[7],
                "conv_7x1_1x7": 2 * 7 * C * C + 2 * C}
    for stride, skip in ((1, 0), (2, C * C + 2 * C)):
        counts = {op: sum(p.numel() for p in build(op, C, stride).parameters()) for op in OPERATIONS}
        assert counts == expected | {"skip_connect": skip}


def test_pools_have_no_batch_norm_in_evaluation_and_average_without_the_padding():
    ones = torch.ones(1, 4, 7, 7)
    for stride in (1, 2):
        assert not build("max_pool_3x3", 4, stride).state_dict() and not build("avg_pool_3x3", 4, stride).state_dict()
        assert (build("avg_pool_3x3", 4, stride)(ones) == 1).all()


@pytest.mark.parametrize("size", [8, 7])
def test_factorized_reduce_sees_alternate_pixels_the_shifted_branch_padded_when_odd(size):
    reduce = FactorizedReduce(4, 6).double().eval()  # fresh statistics: batch norm only scales
    x = torch.randn(2, 4, size, size, dtype=torch.float64)
    padded = F.pad(F.relu(x), (0, 1, 0, 1))
    half = math.ceil(size / 2)
    even, odd = padded[:, :, 0:2 * half:2, 0:2 * half:2], padded[:, :, 1:2 * half:2, 1:2 * half:2]
    expected = torch.cat([torch.einsum("bchw,oc->bohw", even, reduce.conv_1.weight[:, :, 0, 0]),
                          torch.einsum("bchw,oc->bohw", odd, reduce.conv_2.weight[:, :, 0, 0])], dim=1)
    torch.testing.assert_close(reduce(x), expected / math.sqrt(1 + reduce.bn.eps))


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_7x1_1x7_is_1x7_then_7x1_each_with_its_axis_of_the_stride(stride):
    op = build("conv_7x1_1x7", 4, stride).double().eval()
    wide, high = [p for p in op.parameters() if p.dim() == 4]
    assert wide.shape == (4, 4, 1, 7) and high.shape == (4, 4, 7, 1)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    y = F.conv2d(F.relu(x), wide, stride=(1, stride), padding=(0, 3))
    y = F.conv2d(y, high, stride=(stride, 1), padding=(3, 0))
    torch.testing.assert_close(op(x), y / math.sqrt(1 + 1e-5))


def test_alphas_are_one_row_an_edge_and_start_as_small_noise():
    torch.manual_seed(0)
    network = Network(2, 10, 3, [PRIMITIVES] * 14, [PRIMITIVES[:5]] * 14)
    assert network.alphas_normal.shape == (14, 8) and network.alphas_reduce.shape == (14, 5)
    alphas = torch.cat([network.alphas_normal.flatten(), network.alphas_reduce.flatten()])
    assert alphas.std().item() == pytest.approx(1e-3, rel=0.25) and abs(alphas.mean()) < 3e-4
    assert {"alphas_normal", "alphas_reduce"} <= dict(network.named_parameters()).keys()


def skip_network(layers: int, normal_skips: list[int], reduce_skips: list[int], skip_dropout: float = 0.0) -> Network:
    """A supernet that is all skip-connect on the given edges and all `none` on the others, by the softmax of +-1000."""
    torch.manual_seed(0)
    candidates = [["none", "skip_connect"]] * 14
    network = Network(2, 16, layers, candidates, candidates, skip_dropout).double()
    with torch.no_grad():
        for alphas, skips in ((network.alphas_normal, normal_skips), (network.alphas_reduce, reduce_skips)):
            alphas.copy_(torch.tensor([[-1000, 1000] if edge in skips else [1000, -1000] for edge in range(14)]))
    return network


def test_none_contributes_exactly_zero():
    """With all weight on `none` every cell gives zeros, and the classifier its bias."""
    network = skip_network(4, [], [])
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert (network(images) == network.classifier.bias).all()
    assert (network.eval()(images) == network.classifier.bias).all()


def test_none_has_no_parameters_and_no_buffers():
    others = ["avg_pool_3x3", "skip_connect", "sep_conv_3x3"]
    sizes = [sum(value.numel() for key, value in Network(2, 10, 3, [names] * 14, [names] * 14).state_dict().items()
                 if not key.startswith("alphas_")) for names in (["none", *others], others)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("layers, normal_skips, reduce_skips", [
    (3, [0, 1], FROM_INPUTS),  # stride 1 in a normal cell, from its inputs
    (3, [0, 4], FROM_INPUTS),  # and from a node
    (1, [], [0, 4]),  # stride 1 within a reduction cell
])
def test_skip_dropout_acts_on_stride_1_skips_in_training_only(layers, normal_skips, reduce_skips):
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    network = skip_network(layers, normal_skips, reduce_skips, 0.5)
    dropped = network(images)
    assert not torch.allclose(dropped, network(images))  # another mask each time
    network.skip_dropout = 0.0  # set anew each epoch
    kept = network(images)
    assert not torch.allclose(dropped, kept)
    torch.testing.assert_close(network(images), kept, rtol=0, atol=0)  # rate 0: no noise left
    kept = network.eval()(images)
    network.skip_dropout = 0.5
    torch.testing.assert_close(network(images), kept, rtol=0, atol=0)


def test_skip_dropout_leaves_the_strided_skip_alone():
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    network = skip_network(1, [], FROM_INPUTS)
    kept = network(images)
    network.skip_dropout = 0.9
    torch.testing.assert_close(network(images), kept)


def test_skip_dropout_leaves_the_other_operations_alone():
    names = [op for op in PRIMITIVES if op != "skip_connect"]
    network = Network(2, 10, 3, [names] * 14, [names] * 14).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    kept = network(images)
    network.skip_dropout = 0.9
    torch.testing.assert_close(network(images), kept)


def test_skip_dropout_is_ordinary_elementwise_dropout():
    """Spatially constant images: node 0 is constant in space, node 1 its dropout, so their means give the count kept.

    Of 4x4 pixels at rate 1/4 a channel keeps 12 on average with variance 3; what is kept is scaled by 4/3.
    """
    network = skip_network(1, [], [0, 4], 0.25)  # s0 -> node 0 -> node 1
    with torch.no_grad():
        network.stem[0].weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        network.classifier.weight.copy_(torch.eye(16))  # logits: channel means of the 4 nodes
        network.classifier.bias.zero_()
    logits = network(torch.randn(256, 3, 1, 1, dtype=torch.float64).expand(-1, -1, 8, 8))
    kept = logits[:, 4:8] / logits[:, :4] * 0.75 * 16
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-6)
    assert kept.mean().item() == pytest.approx(12, abs=0.3)  # 1024 counts: 5 standard errors
    assert kept.var().item() == pytest.approx(3, abs=0.7)


@pytest.mark.parametrize("drop_prob", [0.0, 0.02, 0.7, 1.0])
def test_dropout_zeroes_independent_values_at_its_rate(drop_prob):
    """Four values in a row share a draw, so each of the four has the rate, and each pair of them its square."""
    torch.manual_seed(0)
    x = torch.ones(50, 3, 33, 21, dtype=torch.float64)  # no multiple of 4
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = dropout(x, drop_prob)
    y.sum().backward()
    assert y.stride() == x.stride() and torch.equal(x.grad, y)  # of ones, the output is the gradient
    values = y.detach().permute(0, 2, 3, 1).flatten()  # in the order of memory
    assert (values[values != 0] * (1 - drop_prob) - 1).abs().lt(1e-12).all()  # the rest is scaled
    zeros = (values[:-2] == 0).double().view(-1, 4)  # (n, 4)
    for rate, observed in ((drop_prob, zeros.mean(0)), (drop_prob ** 2, (zeros * zeros.roll(1, 1)).mean(0)),
                           (drop_prob ** 2, (zeros * zeros.roll(2, 1)).mean(0))):
        torch.testing.assert_close(observed, torch.full((4,), rate).double(), rtol=0,
                                   atol=5 * math.sqrt(rate * (1 - rate) / len(zeros)))


def test_drop_path_zeroes_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    n, keep = 4000, 0.7
    dropped = drop_path(torch.ones(n, 3, 2, 2, dtype=torch.float64), 1 - keep).flatten(1)
    assert (dropped == dropped[:, :1]).all()  # a sample as a whole
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / keep], dtype=torch.float64))
    error = math.sqrt((1 - keep) / keep / n)
    assert dropped.mean().item() == pytest.approx(1, abs=5 * error)


def test_drop_path_exempts_the_identity_and_acts_in_training_only():
    """A node of an average pool on s0 and an identity on s1: only the pool's part is dropped, sample by sample."""
    torch.manual_seed(0)
    genes = [("avg_pool_3x3", 0), ("skip_connect", 1)]
    cell = Cell(Genotype(genes, [2], genes, [2]), 4, 4, 4, False, False).double()
    s0, s1 = torch.randn(2, 64, 4, 6, 6, dtype=torch.float64)
    identity = cell.preprocess1(s1)
    pool = cell(s0, s1, 0.0) - identity
    dropped = cell(s0, s1, 0.4) - identity
    kept = dropped.abs().amax(dim=(1, 2, 3)) > 1e-9
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(dropped[kept], pool[kept] / 0.6)
    cell.eval()
    torch.testing.assert_close(cell(s0, s1, 0.4), cell(s0, s1, 0.0), rtol=0, atol=0)


@pytest.mark.parametrize("network_class, size", [(NetworkCIFAR, 32), (NetworkImageNet, 224)])
def test_auxiliary_logits_come_in_training_only(network_class, size):
    images = torch.randn(2, 3, size, size)
    network = network_class(4, 10, 3, True, PDARTS)
    assert [logits.shape for logits in network(images)] == [(2, 10), (2, 10)]
    assert network.eval()(images)[1] is None
    network = network_class(4, 10, 3, False, PDARTS)
    assert network(images)[1] is None and network.eval()(images)[1] is None
    assert not any(key.startswith("auxiliary_head") for key in network.state_dict())


def test_evaluation_mode_ignores_drop_path():
    network = NetworkCIFAR(4, 10, 3, False, PDARTS).eval()
    images = torch.randn(2, 3, 16, 16)
    kept = network(images)[0]
    network.drop_path_prob = 0.9
    torch.testing.assert_close(network(images)[0], kept, rtol=0, atol=0)


@pytest.mark.parametrize("make", [
    lambda: Network(2, 10, 3, [PRIMITIVES] * 14, [PRIMITIVES] * 14, 0.5),
    lambda: NetworkCIFAR(4, 10, 3, False, PDARTS),
    lambda: NetworkImageNet(4, 10, 3, False, PDARTS),
], ids=["supernet", "cifar", "imagenet"])
def test_the_seed_determines_network_and_forward(make):
    logits = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network = make()
        network.drop_path_prob = 0.5
        output = network(torch.randn(4, 3, 16, 16))
        logits.append(output[0] if isinstance(output, tuple) else output)
    assert torch.equal(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])
