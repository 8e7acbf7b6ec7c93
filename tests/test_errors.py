"""Errors of torch that a user can fix are one line that says what to do."""
from argparse import Namespace

import pytest

from harness.errors import explain


@pytest.mark.parametrize("text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                                  "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"])
def test_a_librarys_own_lack_of_memory_is_told_as_such(text):
    args = Namespace(batch_size=64, grad_checkpoint=False)
    assert "out of memory: try --grad_checkpoint, or a new run with --batch_size 32" in explain(
        RuntimeError(text), args)


@pytest.mark.parametrize("how, words", [
    ("Bus error. It is possible that dataloader's workers are out of shared memory.", "--shm-size=8g"),
    ("Killed. ", "perhaps for lack of memory")])
def test_a_worker_for_which_torch_waited_died_of_its_cause(how, words):
    error = RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly")
    error.__cause__ = RuntimeError(f"DataLoader worker (pid 5) is killed by signal: {how}")
    line = explain(error, Namespace(resume="DIR"))
    assert words in line and "--resume DIR" in line


@pytest.mark.parametrize("cause", [None, OSError(24, "Too many open files")])
def test_a_bug_is_not_explained(cause):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    error.__cause__ = cause
    assert explain(error, Namespace()) is None
