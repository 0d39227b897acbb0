"""Products by oneDNN equal those of torch, with and without a graph, for all strides."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_rnn_seq2seq.model import matmul as products
from hf_rnn_seq2seq.model import search_step
from tests.helpers.models import batch, tiny_model

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")),
    reason="this torch was built without oneDNN",
)


@pytest.fixture(params=["chosen here", pytest.param("oneDNN", marks=needs_onednn)])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library that is chosen for this processor, and oneDNN for products of every size."""
    if request.param == "oneDNN":
        for name in ("SMALLEST", "FEWEST_TERMS", "FEWEST_ROWS", "SMALLEST_PACKED"):
            monkeypatch.setattr(products, name, 0)
        monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    return request.param


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_equal_those_of_torch(library: str, dtype: torch.dtype) -> None:
    rows, whole, sums = draw(5, 7, dtype=dtype), draw(6, 9, dtype=dtype), draw(5, 6, dtype=dtype)
    near = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    written = torch.empty(5, 20, dtype=dtype)
    for weight in (whole[:, :7], whole[:, 2:], whole[:, 2:].contiguous(), draw(7, 6, dtype=dtype).t()):
        expected = rows @ weight.t()
        torch.testing.assert_close(products.affine(sums, rows, weight), sums + expected, **near)
        torch.testing.assert_close(products.affine(sums[0], rows, weight), sums[0] + expected, **near)
        torch.testing.assert_close(products.linear(rows, weight, sums[0]), sums[0] + expected, **near)
        torch.testing.assert_close(products.product(rows, weight.t()), expected, **near)
        torch.testing.assert_close(products.product(sums, weight), sums @ weight, **near)
        products.product(rows, weight.t(), written[:, 3:9])
        torch.testing.assert_close(written[:, 3:9], expected, **near)
    left, right = draw(3, 4, 5, dtype=dtype), draw(4, 3, 7, dtype=dtype).transpose(0, 1)
    total = torch.einsum("tbl,tbr->lr", left, right)
    torch.testing.assert_close(products.outer(left, right), total, **near)
    products.outer(left, right, written[:, 6:13])
    torch.testing.assert_close(written[:, 6:13], total, **near)
    left, right = draw(40, 30, dtype=dtype), draw(40, 3, dtype=dtype)  # a wide left, whose copy would be the larger
    found = products.outer(left, right)
    torch.testing.assert_close(found, left.t() @ right, **near)
    assert found.is_contiguous()


@needs_onednn
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("biased", [True, False])
def test_a_packed_weight_multiplies_rows_of_any_number(rows: int, biased: bool) -> None:
    weight, bias = draw(300, 70), draw(300) if biased else None
    states = draw(rows, 140)[:, ::2]
    found = products.PackedProduct(weight, bias)(states)
    torch.testing.assert_close(found, F.linear(states, weight, bias), rtol=1e-4, atol=1e-5)


def test_strided_weights_are_multiplied_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    rows, weight = draw(64, 512), draw(512, 1024)
    taken = {
        "dense": (rows, weight[:, :512].contiguous()),
        "transposed": (rows, weight[:, :512].t().contiguous().t()),
        "rows apart": (rows, weight[:, :512]),
        "columns apart": (rows, weight[:, ::2]),
        "float64": (rows.double(), weight[:, :512].double().contiguous()),
        "few terms": (draw(4096, 8), draw(512, 8)),
        "few rows": (rows[:2], draw(4096, 512)),
        "small": (rows[:8], draw(8, 512)),
    }
    found = {name for name, operands in taken.items() if products._by_onednn(*operands)}
    assert found == {"dense", "transposed"}


@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_has_its_gradients(library: str, biased: bool) -> None:
    leaves = [draw(4, 3, 7).transpose(0, 1), draw(6, 7), draw(6)][: 2 + biased]
    found, expected = ([leaf.detach().requires_grad_() for leaf in leaves] for _ in range(2))
    actual, known = products.linear(*found), F.linear(*expected)
    torch.testing.assert_close(actual, known)
    (actual * known.detach().cos()).sum().backward()
    (known * known.detach().cos()).sum().backward()
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_a_gradient_of_the_gradient_exists(library: str) -> None:
    leaves = [draw(4, 7).requires_grad_(), draw(6, 7).requires_grad_(), draw(6).requires_grad_()]
    found = []
    for function in (products.linear, F.linear):
        (first,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[1], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaves))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_type": "additive"}, {"cell_type": "gru"}, {"cell_type": "gru", "gru_reset": "before"}],
    ids=str,
)
def test_a_training_step_is_the_same_with_either_library(library: str, options: dict[str, Any]) -> None:
    """In float32, with every product of the training step through the library, as in float64 through torch's own."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        path = "loop" if dtype == torch.float64 else "scan"
        model = tiny_model(**options, dtype=dtype, deviation=0.3, decoder_recurrence=path).train()
        model(**batch()).loss.backward()
        gradients.append({name: parameter.grad.double() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"cell_type": "gru"}, {"attention_type": "additive"}], ids=str)
def test_autocast_leaves_the_search_as_it_is(library: str, options: dict[str, Any]) -> None:
    model = tiny_model(**options, deviation=0.5).float().eval()
    call = {"input_ids": batch()["input_ids"], "num_beams": 3, "max_new_tokens": 8, "return_dict_in_generate": True}
    with torch.autocast("cpu", torch.bfloat16):
        found = model.search(**call)
    expected = model.search(**call)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)


@pytest.mark.parametrize("options", [{}, {"cell_type": "gru"}, {"attention_type": "additive"}], ids=str)
def test_the_search_finds_what_generate_finds(library: str, options: dict[str, Any]) -> None:
    model = tiny_model(**options, deviation=0.5).eval()
    inputs = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    for beams in (1, 3):
        call = {**inputs, "num_beams": beams, "max_new_tokens": 12}
        assert model.search(**call).tolist() == model.generate(**call).tolist()
    if library == "oneDNN":
        assert isinstance(search_step.product(draw(6, 7), None, False), products.PackedProduct)
