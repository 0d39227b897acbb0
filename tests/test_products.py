"""The products of the training step are torch's own, in every type and whatever the strides."""

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.model import products


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_equal_torchs(dtype: torch.dtype) -> None:
    rows, whole, sums = draw(5, 7, dtype=dtype), draw(6, 9, dtype=dtype), draw(5, 6, dtype=dtype)
    near = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    for weight in (whole[:, :7], whole[:, 2:], whole[:, 2:].contiguous(), draw(7, 6, dtype=dtype).t()):
        wanted = rows @ weight.t()
        torch.testing.assert_close(products.affine(sums, rows, weight), sums + wanted, **near)
        torch.testing.assert_close(products.affine(sums[0], rows, weight), sums[0] + wanted, **near)
    left, right = draw(3, 4, 5, dtype=dtype), draw(4, 3, 7, dtype=dtype).transpose(0, 1)
    total = torch.einsum("tbl,tbr->lr", left, right)
    torch.testing.assert_close(products.outer(left, right), total, **near)
    written = torch.empty(5, 20, dtype=dtype)
    products.outer(left, right, written[:, 6:13])
    torch.testing.assert_close(written[:, 6:13], total, **near)
