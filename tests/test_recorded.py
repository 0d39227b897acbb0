"""Functions recorded for each shape, and the step of a search that is one. Off CUDA a replay reruns the function."""

import contextlib
import copy
import inspect
import random
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq import SearchError
from hf_rnn_seq2seq.model.captured_step import CapturedStep
from hf_rnn_seq2seq.model.ensemble import EnsembleStep
from hf_rnn_seq2seq.model.fast_step import FusedStep, build_step
from hf_rnn_seq2seq.model.recorded import Recorded
from hf_rnn_seq2seq.model.search import _run, _step
from hf_rnn_seq2seq.model.search_options import OwnOptions, Settings
from hf_rnn_seq2seq.model.search_step import GeneralStep
from tests.decoding import inputs as decoding_inputs
from tests.decoding import sentence, trained
from tests.model_cases import CASES, TWO_LAYERS
from tests.models import START, tiny_model
from tests.test_search import FUSED, inputs, walk, wide_model

CPU = torch.device("cpu")
on_a_device = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device, where alone graphs are captured"
)


def test_a_shape_runs_first_is_captured_then_and_replayed_from_buffers_afterwards() -> None:
    seen: list[Tensor] = []

    def double(tensor: Tensor, factor: int) -> tuple[Tensor, None, tuple[Tensor]]:
        seen.append(tensor)
        return tensor, None, (factor * tensor,)

    recorded = Recorded(double, CPU)
    for number in range(4):
        given = torch.full((2,), float(number))
        same, nothing, (doubled,) = recorded(given, 2)
        assert same.tolist() == [number] * 2 and nothing is None and doubled.tolist() == [2 * number] * 2
        same.fill_(-1.0)  # a copy: what was handed out is not what the graph reads
    assert recorded.captured == 1 and seen[0] is not seen[1] and seen[1] is seen[2] is seen[3]
    assert len(seen) == 4, "no call computes anything twice"
    recorded(torch.zeros(3), 2), recorded(torch.zeros(2), 3), recorded(torch.zeros(2, dtype=torch.long), 2)
    assert recorded.captured == 1, "another shape, constant or type is another graph"


def test_an_input_that_stays_is_copied_once() -> None:
    recorded = Recorded(lambda stays, changes: stays + changes, CPU)
    stays = torch.ones(2)
    for number in range(3):
        recorded(stays, torch.full((2,), float(number)))
    stays.fill_(5.0)  # against the contract, so that it shows
    assert recorded(stays, torch.zeros(2)).tolist() == [1.0, 1.0]
    assert recorded(stays.clone(), torch.zeros(2)).tolist() == [5.0, 5.0]
    assert recorded(stays, torch.zeros(2)).tolist() == [5.0, 5.0]


def test_no_more_shapes_are_captured_than_allowed() -> None:
    recorded = Recorded(torch.neg, CPU, limit=1)
    for _ in range(3):
        for size in (1, 2):
            assert recorded(torch.ones(size)).tolist() == [-1.0] * size
    assert recorded.captured == 1


def test_a_recording_made_in_inference_mode_serves_outside_it() -> None:
    recorded = Recorded(torch.neg, CPU)
    with torch.inference_mode():
        recorded(torch.ones(2)), recorded(torch.ones(2))
    assert recorded(torch.zeros(2)).tolist() == [0.0, 0.0] and recorded.captured == 1


def test_what_torch_is_asked_for_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call between two waits on the stream of the captures, and each capture on it, in the pool of all."""
    log: list[Any] = []

    class Stream:
        def __init__(self, device: Any) -> None:
            self.device = device

        def wait_stream(self, other: Any) -> None:
            log.append(("waits for", "main" if other is main else "side"))

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextlib.contextmanager
    def graph(cuda_graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Any:
        log.append((type(cuda_graph).__name__, pool, stream is not main, capture_error_mode))
        yield

    @contextlib.contextmanager
    def on(stream: Any) -> Any:
        log.append("on side" if stream is not main else "on main")
        yield
        log.append("left")

    real = inspect.signature(torch.cuda.graph.__init__).parameters
    assert set(inspect.signature(graph).parameters) <= set(real), "torch's own takes these"
    main = Stream("cuda:0")
    replaced = {"Stream": Stream, "CUDAGraph": Graph, "graph": graph, "stream": on}
    replaced |= {"graph_pool_handle": lambda: "pool", "current_stream": lambda device: main}
    for name, stand_in in replaced.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    recorded = Recorded(lambda tensor: (log.append("computes"), tensor)[1], torch.device("cuda"))
    for _ in range(3):
        recorded(torch.ones(2))
    first = [("waits for", "main"), "on side", "computes", "left", ("waits for", "side")]
    assert log == [*first, ("Graph", "pool", True, "thread_local"), "computes", "replay", "replay"]


@on_a_device
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "weight_type": "bfloat16"}])
def test_a_search_on_a_device(options: dict[str, Any]) -> None:
    model = copy.deepcopy(trained()).cuda()
    given = {name: tensor.cuda() for name, tensor in decoding_inputs(ROWS).items()}
    wanted = model.search(**given, **options, max_new_tokens=12)
    for _ in range(3):
        assert model.search(**given, **options, max_new_tokens=12, capture_step=True).tolist() == wanted.tolist()
    assert build_step(model, options.get("weight_type", "float32"), captured=True).recorded.captured > 1


@pytest.mark.parametrize("case", [*CASES, *(f"fused: {name}" for name in FUSED)])
def test_a_captured_step_is_the_step(case: str) -> None:
    """Logits and attention of forced words, eight sentences of three beams: first, captured and replayed positions."""
    options = FUSED[case.removeprefix("fused: ")] if case.startswith("fused: ") else TWO_LAYERS | CASES[case]
    model = tiny_model(**options)
    step, batch = build_step(model), inputs(model)
    torch.manual_seed(0)
    targets = torch.randint(3, 11, (24, 5))
    targets[:, 0] = START
    captured = CapturedStep(step, CPU)
    with torch.no_grad():
        torch.testing.assert_close(walk(captured, batch, targets, 3), walk(step, batch, targets, 3))
    assert captured.recorded.captured == 1


ROWS = [sentence(random.Random(number)) for number in range(24)]


@lru_cache
def exact() -> Any:
    """A trained model whose sentences end at many positions."""
    return copy.deepcopy(trained()).double()


def searched(step: Any, own: OwnOptions, **options: Any) -> dict[str, Any]:
    """What the search finds with a given step."""
    settings = Settings(exact().generation_config, None, {**options, "return_dict_in_generate": True})
    given = {"decoder_input_ids": None, "inputs_embeds": None, "encoder_outputs": None, **decoding_inputs(ROWS)}
    with torch.no_grad():
        return dict(_run(step, settings, own, given, CPU))


WANTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams, stopping early": {"num_beams": 3, "stop_at_top": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "coverage penalty": {"num_beams": 3, "coverage_penalty": 0.2, "return_alignments": True},
    "in parts": {"num_beams": 2, "rows_per_batch": 5, "return_alignments": True},
}


@pytest.mark.parametrize("want", WANTS)
@pytest.mark.parametrize("kind", [FusedStep, GeneralStep])
def test_a_search_over_a_captured_step_finds_the_same(kind: type, want: str) -> None:
    """While sentences leave one by one; and the shapes stay few."""
    options = {**WANTS[want], "max_new_tokens": 12}
    own, step = OwnOptions.take(options), kind(exact())
    captured = CapturedStep(step, CPU)
    for _ in range(2):
        found, wanted = searched(captured, own, **options), searched(step, own, **options)
        torch.testing.assert_close(found, wanted)
    assert len(set(wanted["lengths"].tolist())) > 5
    # Of 32, 16, 8, 4, 2 and 1 sentences; in parts of five, 8 and 16 words wide. Beams are one at the first position.
    shapes = 6 + 1 if own.rows_per_batch is None else 2 * (4 + 1)
    assert 1 <= captured.recorded.captured <= shapes


def test_an_ensemble_of_captured_steps() -> None:
    steps = [FusedStep(exact()), GeneralStep(copy.deepcopy(trained(seed=1)).double())]
    captured = EnsembleStep([CapturedStep(step, CPU) for step in steps])
    found = searched(captured, OwnOptions(return_alignments=True), num_beams=3, max_new_tokens=12)
    torch.testing.assert_close(
        found, searched(EnsembleStep(steps), OwnOptions(return_alignments=True), num_beams=3, max_new_tokens=12)
    )


def test_a_captured_step_is_refused_off_cuda_and_kept_with_the_model() -> None:
    model = wide_model()
    with pytest.raises(SearchError, match="capture_step=True: needs a model on a CUDA device; this one is on cpu"):
        model.search(**inputs(model), capture_step=True)
    with pytest.raises(SearchError, match="must_contain: does not go with capture_step"):
        model.search(**inputs(model), capture_step=True, must_contain=[[]] * 8)
    with pytest.raises(SearchError, match="capture_step: cannot go with do_sample=True"):
        model.search(**inputs(model), capture_step=True, do_sample=True)
    kept = build_step(model, captured=True)
    assert isinstance(kept, CapturedStep) and build_step(model, captured=True) is kept is not build_step(model)
    assert _step(model, OwnOptions()) is build_step(model)
