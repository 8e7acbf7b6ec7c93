"""Counting what networks have and take, and the memory there is."""
import functools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_networks import parameters
from torch import nn

import genotypes
import utils
from model import NetworkCIFAR, NetworkImageNet


def test_a_gpu_named_by_its_number_is_the_current_one(monkeypatch):
    """torch.cuda.get_rng_state and others mean the current device."""
    chosen = []
    for name, value in (("set_device", chosen.append), ("get_device_capability", lambda device: (9, 0)),
                        ("get_arch_list", lambda: ["sm_90"])):
        monkeypatch.setattr(torch.cuda, name, value)
    assert [utils._pick_gpu(torch.device(name)) for name in ("cuda", "cuda:1")] == [torch.device("cuda"), *chosen]
    assert chosen == [torch.device("cuda:1")]


def test_a_numbered_gpu_is_one_line_where_torch_is_built_without_cuda(monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_setDevice", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: 1 / 0)  # not reached
    with pytest.raises(ValueError, match="--device cuda:0 can't be used here"):
        utils.pick_device("cuda:0")


# ---- networks

def test_all_published_cells_have_the_computed_sizes(golden, monkeypatch):
    """The parameters and multiply-adds of each cell's networks at full size."""
    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):  # 108 networks: counting needs no values
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    monkeypatch.setattr(utils, "copy", SimpleNamespace(deepcopy=lambda network: network))  # and each is counted once
    cells = golden("genotypes.json")
    assert len(cells) == 36
    for name, cell in cells.items():
        genotype = genotypes.load(name)
        with torch.device("meta"):
            cifar = NetworkCIFAR(36, 10, 20, False, genotype)
            imagenet = NetworkImageNet(48, 1000, 14, False, genotype)
            of_100_classes = NetworkCIFAR(36, 100, 4, False, genotype).classifier  # as wide
        found = {
            "params_cifar10": parameters(cifar), "params_imagenet": parameters(imagenet),
            "macs_cifar10": utils.count_multiply_adds(cifar, 32),
            "macs_imagenet": utils.count_multiply_adds(imagenet, 224)}
        cifar.classifier = of_100_classes
        found["params_cifar100"] = parameters(cifar)
        assert found == {key: cell["computed"][key] for key in found}, name


def test_the_auxiliary_head_adds_parameters_but_no_multiply_adds():
    with torch.device("meta"):
        network = NetworkCIFAR(36, 10, 20, True, genotypes.load("PDARTS"))
    assert utils.count_parameters(network) == 3_433_798 and utils.count_parameters(network, True) == 3_910_224
    assert round(utils.count_multiply_adds(network, 32) / 1e6, 1) == 532.2
    assert network.training  # counting leaves it as it was


def test_the_released_cell_has_557_million_multiply_adds_in_the_published_convention():
    with torch.device("meta"):
        network = NetworkImageNet(48, 1000, 14, True, genotypes.load("PDARTS"))
    assert round(utils.count_multiply_adds(network, 224) / 1e6, 1) == 542.8
    assert round(utils.count_multiply_adds(network, 224, published=True) / 1e6, 1) == 557.1


# ---- memory

def test_free_memory_is_what_linux_says_unless_a_container_or_nothing_says_otherwise(monkeypatch):
    files = {"/proc/meminfo": "MemTotal:       100 kB\nMemAvailable:    60 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}

    def read_text(path):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]
    monkeypatch.setattr(Path, "read_text", read_text)
    assert utils.free_memory() == 60 * 1024
    files["/sys/fs/cgroup/memory.max"] = "50000\n"
    assert utils.free_memory() == 50_000
    files.clear()
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 7, "SC_PAGE_SIZE": 4096}.get)
    assert utils.free_memory() == 7 * 4096
    monkeypatch.setattr(os, "sysconf_names", {})
    assert utils.free_memory() is None


# ---- channels within a budget

@pytest.fixture
def quickly(monkeypatch):
    """Counting needs neither initial values nor a copy."""
    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    monkeypatch.setattr(utils, "copy", SimpleNamespace(deepcopy=lambda network: network))


def test_within_600_million_the_papers_cell_has_the_papers_48_channels(quickly):
    make = functools.partial(NetworkImageNet, num_classes=1000, layers=14, auxiliary=False,
                             genotype=genotypes.load("PDARTS"))
    assert utils.most_channels(make, 224, 600) == 48
    with torch.device("meta"):
        found = [utils.count_multiply_adds(make(channels), 224, published=True) for channels in (48, 52)]
    assert [round(count / 1e6, 1) for count in found] == [557.1, 648.9]


def test_a_budget_is_met_exactly_and_not_exceeded(quickly):
    def make(channels):
        return NetworkCIFAR(channels, 10, 3, False, genotypes.load("random:0"))
    with torch.device("meta"):
        count = utils.count_multiply_adds(make(12), 16, published=True)
    assert utils.most_channels(make, 16, count / 1e6) == 12
    assert utils.most_channels(make, 16, (count - 1) / 1e6) == 8
    with pytest.raises(ValueError, match=r"--max_multiply_adds 0.001 .*4 channels already need .*16x16"):
        utils.most_channels(make, 16, 0.001)
