"""What only GPUs would show, held on the CPU: faked devices, steps that never wait, momentum, random states."""
from types import SimpleNamespace

import pytest
import torch
from scripts import run
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import train_search
import utils
from architect import Architect
from engine import Meter
from fast import pixels
from genotypes import PRIMITIVES
from input_pipeline import DataSet
from input_pipeline.batches import Batches, eval_batches
from input_pipeline.imagenet import STATS, to_input
from model_search import Network


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """pick_device sets up torch for the whole process."""
    yield
    utils.pick_device("cpu")
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def gpu(monkeypatch):
    """A faked GPU: its properties, and the calls that open a context, in order."""
    fake = SimpleNamespace(capability=(9, 0), archs=["sm_75", "sm_80", "sm_90", "compute_90"], bf16=True, calls=[])
    for name, value in {
            "is_available": lambda: True, "device_count": lambda: 4, "get_device_name": lambda device: "Faked GPU",
            "get_device_capability": lambda device: fake.capability, "get_arch_list": lambda: fake.archs,
            "is_bf16_supported": lambda including_emulation: fake.bf16,
            "set_device": lambda device: fake.calls.append(f"set {device}")}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: fake.calls.append(f"zeros on {device}"))
    return fake


# ---- devices and precision

def test_a_rank_opens_a_context_on_its_own_gpu_only(gpu, monkeypatch):
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    assert utils.pick_device(None) == torch.device("cuda", 2)
    assert gpu.calls == ["set cuda:2", "zeros on cuda:2"]


def test_a_rank_without_a_gpu_is_told_so(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="--device cuda can't be used here"):
        utils.pick_device("cuda")


@pytest.mark.parametrize("capability, archs, works", [
    ((9, 0), ["sm_80", "sm_90"], True), ((8, 6), ["sm_80", "sm_90"], True), ((8, 9), ["sm_90"], False),
    ((6, 1), ["sm_75", "sm_80", "compute_80"], False), ((12, 0), ["sm_90", "compute_90"], True),
    ((10, 3), ["sm_100a", "sm_120"], True), ((12, 0), ["sm_90"], False), ((9, 0), [], True),
    ((9, 4), ["gfx90a", "gfx942"], True)])
def test_a_gpu_that_torch_is_not_built_for_is_rejected(gpu, capability, archs, works):
    gpu.capability, gpu.archs = capability, archs
    if works:
        assert utils.pick_device("cuda").type == "cuda"
        return
    with pytest.raises(ValueError, match=rf"Faked GPU has compute capability {capability[0]}.{capability[1]}, .*"
                                         r"use --device cpu"):
        utils.pick_device("cuda")
    assert not gpu.calls


def test_bf16_that_is_only_emulated_is_rejected(gpu):
    gpu.bf16 = False
    with pytest.raises(ValueError, match="--amp bf16: Faked GPU only emulates it: use --amp fp16"):
        utils.pick_device("cuda", amp="bf16")
    assert utils.pick_device("cuda", amp="fp16").type == "cuda"


def test_mixed_precision_that_torch_lacks_is_one_line_before_a_run_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    with pytest.raises(ValueError, match="--amp fp16: torch has no reliable mixed precision on cpu: use --amp off"):
        utils.pick_device("cpu", amp="fp16")


def test_mixed_precision_is_refused_on_mps():
    """Older versions of torch offer it, and abort in it."""
    utils._check_precision(torch.device("mps"), "off")
    with pytest.raises(ValueError, match="--amp bf16: torch has no reliable mixed precision on mps: use --amp off"):
        utils._check_precision(torch.device("mps"), "bf16")


@pytest.mark.parametrize("tf32", [False, True])
def test_one_option_sets_tf32_for_convolutions_and_products(gpu, tf32):
    device = utils.pick_device("cuda", tf32=tf32)
    assert torch.backends.cudnn.allow_tf32 is tf32 and torch.backends.cuda.matmul.allow_tf32 is tf32
    assert utils.describe_device(device) == ("Faked GPU with TF32" if tf32 else "Faked GPU")
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is tf32  # the other interface can still be read


@pytest.mark.parametrize("script", ["train_search.py", "train_cifar.py", "train_imagenet.py"])
def test_all_scripts_take_tf32(script):
    assert "--tf32" in run(script, "--help").out


# ---- momentum

def test_a_first_step_that_the_scaler_skips_leaves_momentum_zero():
    """Uninitialised memory would be NaN here, as the tests fill it."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    p = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = utils.sgd([p], 0.1, 0.9, 0.0), torch.amp.GradScaler("cpu")
    for gradient in (torch.inf, 1.0):
        p.grad = scaler.scale(torch.full((3,), gradient))
        utils.clipped_step(optimizer, scaler, 5.0)
    assert p.tolist() == pytest.approx([0.9] * 3)


def test_momentum_starts_as_zeros_and_changes_no_step():
    torch.manual_seed(0)
    p, q = (torch.nn.Parameter(value.clone()) for value in [torch.randn(5)] * 2)
    ours, plain = utils.sgd([p], 0.1, 0.9, 1e-3), torch.optim.SGD([q], 0.1, 0.9, weight_decay=1e-3, fused=True)
    for _ in range(3):
        p.grad = q.grad = torch.randn(5)
        ours.step()
        plain.step()
        assert torch.equal(p, q) and torch.equal(*(o.state[v]["momentum_buffer"] for o, v in ((ours, p), (plain, q))))


@pytest.mark.parametrize("stepped", [0, 1, 2])
def test_momentum_that_a_checkpoint_lacks_is_zero(stepped):
    """A checkpoint from before the first step, or one in which some weights have had no gradient yet."""
    values = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    saved = torch.optim.SGD(values, 0.1, 0.9, fused=True)
    for p in values[:stepped]:
        p.grad = torch.ones(2)
    saved.step()
    optimizer = utils.sgd([torch.nn.Parameter(torch.ones(2)) for _ in range(2)], 0.1, 0.9, 0.0)
    optimizer.load_state_dict(saved.state_dict())
    buffers = [optimizer.state[p]["momentum_buffer"].tolist() for p in optimizer.param_groups[0]["params"]]
    assert buffers == [[1.0, 1.0]] * stepped + [[0.0, 0.0]] * (2 - stepped)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones(2)
    optimizer.step()  # a mixture would raise


def test_deterministic_runs_do_not_fill_memory():
    utils.pick_device("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.utils.deterministic.fill_uninitialized_memory


# ---- random numbers

def test_a_recomputation_restores_the_state_of_the_device_that_draws_the_masks(monkeypatch):
    assert [pixels.random_module(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [
        torch, torch.cuda, torch.mps]
    calls = []
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.mps, name, lambda *state, name=name: calls.append(name) or torch.zeros(1))
    with pixels.same_random_numbers(torch.device("mps"), torch.ones(1)):
        calls.append("recompute")
    assert calls == ["get_rng_state", "set_rng_state", "recompute", "set_rng_state"]


def test_checkpointing_draws_the_same_masks_without_the_help_of_torch():
    torch.manual_seed(0)
    network = Network(2, 3, 3, [PRIMITIVES] * 14, [PRIMITIVES] * 14, skip_dropout=0.5).double()
    images, target, gradients = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0]), []
    for network.grad_checkpoint in (False, True):
        torch.manual_seed(1)
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(images), target).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        gradients[-1].append(torch.rand(1))  # and what is drawn next is the same
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# ---- no step waits for the device

WAITING = {"new_tensor", "item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "numpy"}


class NoWaiting(TorchFunctionMode):
    """Refuses what copies a value to or from a device at once."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        on_device = any(isinstance(arg, torch.Tensor) and arg.device.type == "meta" for arg in args)
        assert not (name in WAITING and on_device), f"{name} waits for the device"
        assert not (func is torch.tensor and (kwargs or {}).get("device") is not None), "torch.tensor waits"
        return func(*args, **(kwargs or {}))


class NoBlockingCopies(TorchDispatchMode):
    """Refuses copies between host and device that are not asynchronous."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            devices = {args[0].device.type, torch.device(kwargs["device"]).type}
            assert len(devices) == 1 or kwargs.get("non_blocking"), "a copy that waits"
        if func is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            assert len(args) > 2 and args[2], "a copy that waits"
        read = func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta"
        assert not read, "a value is read"
        return func(*args, **kwargs)


def meta_dataset(n=40):
    images, target = torch.zeros(n, 3, 8, 8, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    return DataSet(images, target, images, target, list("abc"), (.5, .4, .3), (.2, .2, .2), True)


def test_a_bilevel_step_does_not_wait_for_the_device(monkeypatch):
    """Batches, both steps and the meter, as on a GPU; the meta device has no values that could be waited for."""
    for name in ("SGD", "Adam"):  # there is no fused step on meta
        unfused = getattr(torch.optim, name)
        monkeypatch.setattr(torch.optim, name, lambda *args, make=unfused, fused, **options: make(*args, **options))
    data = meta_dataset()
    batches = Batches(data.train_images, data.train_target, 8, data, "meta", seed=0, cutout=4)
    network = Network(2, 3, 1, [PRIMITIVES] * 14, [PRIMITIVES] * 14, skip_dropout=0.3).to("meta")  # reduces
    architect = Architect(network, 6e-4, 1e-3, 5.0)
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    optimizer, meter = utils.sgd(weights, 0.025, 0.9, 3e-4), Meter("", 3, 50)
    batches.next(), architect.step(*batches.next())  # what is made once, is made now
    with NoBlockingCopies(), NoWaiting():
        for _ in range(2):
            architect.step(*batches.next())
            images, target = batches.next()
            loss, logits = train_search.weight_step(network, optimizer, images, target, 5.0)
            meter.update(loss, logits, target)


def test_an_evaluations_batches_do_not_wait_for_the_device():
    data = meta_dataset()
    found = eval_batches(data.test_images, data.test_target, 8, data, "meta")
    with NoBlockingCopies(), NoWaiting():
        assert [len(target) for _, target in found] == [8] * 5


def test_streamed_images_become_input_without_waiting():
    statistics = [torch.tensor(stat).view(-1, 1, 1).to("meta") for stat in STATS]
    with NoBlockingCopies(), NoWaiting():
        assert to_input(torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device="meta"), *statistics).shape == (2, 3, 8, 8)
