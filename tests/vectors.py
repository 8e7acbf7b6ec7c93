"""Networks against the vectors of golden/: their recorded state, and comparisons that name the tensor that differs."""
import torch
from torch import Tensor, nn

WAYS = [(False, False), (True, False), (True, True)]  # (fast, grad_checkpoint): the definition, and what equals it


def assert_equals_vector(actual, expected, name: str = "the tensor", bound: float = 1e-8,
                         floor: float = 0.0) -> None:
    """Equal to 1e-8 (or `bound`) of the vector's largest entry, or of `floor` where all are smaller."""
    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected).detach()
    allowed = bound * max(floor, expected.abs().max().item())
    same = (actual.dtype, actual.shape, actual.device) == (expected.dtype, expected.shape, expected.device)
    if not (same and (actual - expected).abs().max().item() <= allowed):  # a fast answer; torch's says what differs
        torch.testing.assert_close(actual, expected, rtol=0, atol=allowed, msg=lambda text: f"{name}: {text}")


def load_state(network: nn.Module, vectors) -> nn.Module:
    """The network in float64 with the recorded state, its keys exactly the published ones."""
    keys = [key for key in vectors.files if key.startswith("state/")]
    network.double().load_state_dict({key.removeprefix("state/"): torch.from_numpy(vectors[key]) for key in keys})
    return network


def assert_gradient_norms_equal(network: nn.Module, vectors) -> None:
    norms = {name: p.grad.norm() for name, p in network.named_parameters() if not name.startswith("alphas_")}
    assert set(norms) == {key.removeprefix("gradnorm/") for key in vectors.files if key.startswith("gradnorm/")}
    for name, norm in norms.items():
        assert_equals_vector(norm, vectors[f"gradnorm/{name}"], name)


def assert_same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-8) -> None:
    """The same names, each with the same tensor; what is 0 but for rounding (a mean behind a norm) is 0."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_equals_vector(actual[name], tensor, name, bound, floor=1e-5)
