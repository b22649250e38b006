"""Batches that are halved when memory runs out."""

import pytest
import torch

from mri_ambient.recon.batches import Batches, is_out_of_memory


def maker(fits, error=MemoryError):
    asked = []

    def make(items):
        asked.append(list(items))
        if len(items) > fits:
            raise error("enough memory is not available")
        return torch.tensor([[i, i] for i in items])

    return make, asked


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_every_item_once_and_in_order(fits, count):
    make, _ = maker(fits)
    assert torch.equal(Batches(8).run(make, count)[:, 0], torch.arange(count))


def test_halves_and_remembers():
    make, asked = maker(3)
    batches = Batches(8)
    batches.run(make, 7)
    assert asked == [list(range(7)), [0, 1, 2], [3, 4, 5], [6]]
    assert batches.size == 3


def test_one_item_that_does_not_fit_and_other_errors_are_raised():
    make, asked = maker(0)
    with pytest.raises(MemoryError):
        Batches(4).run(make, 4)
    assert [len(items) for items in asked] == [4, 2, 1]

    def fails(items):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        Batches(4).run(fails, 4)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("no"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected
