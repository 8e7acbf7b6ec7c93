"""An epoch of training and an evaluation, on a network whose images are its logits: worked out by hand."""
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import engine
import utils


class GivenLogits(nn.Module):
    """A network whose images are its logits; in training they are the auxiliary head's, too, if it has one."""

    def __init__(self, num_classes: int, auxiliary: bool = False):
        super().__init__()
        self.auxiliary = auxiliary
        self.classifier = nn.Linear(num_classes, num_classes, bias=False).double()
        self.classifier.weight.data = torch.eye(num_classes, dtype=torch.float64)

    def forward(self, images):
        logits = self.classifier(images)
        return logits, 2 * logits if self.auxiliary and self.training else None


def test_evaluation_counts_top_1_and_top_5_over_unequal_batches():
    """Of 7 images the target's logit is first in 2, second to fifth in 3, and sixth or later in 2."""
    logits = torch.arange(10., 0., -1, dtype=torch.float64).repeat(7, 1)  # class c is at place c
    target = torch.tensor([0, 4, 9, 0, 1, 5, 4])
    network = GivenLogits(10).train()
    loss, top1, top5 = engine.evaluate(network, [(logits[:4], target[:4]), (logits[4:6], target[4:6]),
                                                 (logits[6:], target[6:])], "test")
    assert (top1, top5) == pytest.approx((100 * 2 / 7, 100 * 5 / 7), rel=1e-12)
    expected = sum(math.log(sum(math.exp(10 - c) for c in range(10))) - (10 - t) for t in target.tolist()) / 7
    assert loss == pytest.approx(expected, rel=1e-9)  # of all images, not of the batches' means
    assert network.training


def test_with_less_than_five_classes_every_image_is_in_the_top_5():
    logits = torch.tensor([[3., 2, 1]], dtype=torch.float64).repeat(3, 1)
    assert engine.evaluate(GivenLogits(3), [(logits, torch.tensor([0, 1, 2]))], "test")[1:] == pytest.approx(
        (100 / 3, 100))


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_accuracy_and_loss_are_counted_exactly_under_mixed_precision(amp):
    """1001 hits need more digits than a 16-bit float has, and their losses' sum is more than fp16 can hold."""
    torch.manual_seed(0)
    logits = torch.rand(1001, 10).argsort(1).float()  # 0 to 9 in any order: exact in 16 bits
    network = GivenLogits(10).float()
    utils.set_precision(network, amp)
    for target in (logits.argmax(1), logits.argmin(1)):
        loss, top1, top5 = engine.evaluate(network, [(logits, target)] * 40, "test")
        assert top1 == top5 == 100 * (target == logits.argmax(1)).all()
        assert loss == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-3)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_an_epochs_loss_is_the_cross_entropy_plus_the_auxiliary_heads_part(auxiliary):
    torch.manual_seed(0)
    images, target = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 0])
    network, args = GivenLogits(4, auxiliary), SimpleNamespace(seed=0, auxiliary_weight=0.4, grad_clip=5.)
    optimizer = torch.optim.SGD(network.parameters(), 0.)  # nothing moves
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batches = [(images[:4], target[:4]), (images[4:], target[4:])]
    record = engine.train_one_epoch(network, batches, optimizer, scaler, 0, engine.Meter("epoch 0", 2, 50), args)

    def nll(logits):
        return -sum(row.softmax(0)[t].log().item() for row, t in zip(logits, target.tolist())) / 6
    assert record["train_loss"] == pytest.approx(nll(images) + 0.4 * nll(2 * images) * auxiliary, rel=1e-9)
    assert record["train_acc"] == pytest.approx(100 * (images.argmax(1) == target).sum().item() / 6)


@pytest.mark.parametrize("grad_clip, moved", [(1e-3, 1e-3), (1e3, None)])
def test_a_step_is_clipped_by_the_norm_of_all_gradients(grad_clip, moved):
    images, target = torch.eye(4, dtype=torch.float64), torch.tensor([1, 2, 3, 0])
    network, args = GivenLogits(4), SimpleNamespace(seed=0, auxiliary_weight=0.4, grad_clip=grad_clip)
    before = network.classifier.weight.detach().clone()
    F.cross_entropy(network(images)[0], target).backward()
    norm = network.classifier.weight.grad.norm().item()
    optimizer = torch.optim.SGD(network.parameters(), 1.)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    engine.train_one_epoch(network, [(images, target)], optimizer, scaler, 0, engine.Meter("", 1, 50), args)
    step = (network.classifier.weight.detach() - before).norm().item()
    assert step == pytest.approx(moved or norm, rel=1e-2 if moved else 1e-9)  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("steps, total, left", [
    (3, 4, True), (4, 4, False), (4, 5, True), (5, 5, False), (5, None, False)])
def test_an_epoch_that_had_ended_is_not_longer_on_fewer_processes(steps, total, left):
    """Of 5 steps here; total: how many it had, which older checkpoints lack."""
    meter = engine.Meter("epoch 0", 5, 50)
    state = {"sums": [0.0, 0.0, 0.0, 0], "steps": steps, "seconds": 1.0}
    meter.load_state_dict(state | ({} if total is None else {"total": total}))
    assert bool([*meter.remaining([1])]) is left


@pytest.mark.parametrize("before, now, expected", [(1, 1, 10), (2, 1, 20), (4, 2, 20), (1, 4, 2.5)])
def test_an_epoch_resumed_on_other_processes_counts_device_seconds(before, now, expected, monkeypatch):
    monkeypatch.setattr(engine.parallel, "world_size", lambda: now)
    meter = engine.Meter("epoch 0", 2, 50)
    meter.load_state_dict({"sums": [0.0, 0.0, 0.0, 0], "steps": 1, "seconds": 10.0, "processes": before})
    assert meter.elapsed() == pytest.approx(expected, abs=1)
