"""What a CUDA graph may hold, shown without a device.

On meta tensors every operation that waits for a value (item, nonzero, a test of a tensor) raises, and code that asks
for the CPU takes the path of a device. What would copy from the host, which a capture does not allow either, is looked
for.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_rnn_seq2seq.model.fast_step import FusedStep, can_fuse
from hf_rnn_seq2seq.model.presets import PRESETS
from hf_rnn_seq2seq.model.search_step import GeneralStep
from hf_rnn_seq2seq.run_control import build_accelerator
from tests.model_cases import CASES, TWO_LAYERS
from tests.models import batch, tiny_config, tiny_model
from tests.test_cuda_graphs import LOSSES
from tests.test_search import FUSED
from tests.training_runs import arguments, build_loop


class _NoNewTensors(TorchFunctionMode):
    """`new_tensor` copies from the host behind the dispatcher."""

    def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if called is Tensor.new_tensor:
            raise RuntimeError("new_tensor")
        return called(*args, **(kwargs or {}))


class _NothingOfTheHost(TorchDispatchMode):
    def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = called(*args, **(kwargs or {}))
        places = {tensor.device.type for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)}
        if "cpu" in places or "lift_fresh" in str(called):
            raise RuntimeError(f"{called} on {', '.join(sorted(places))}")
        return result


@contextlib.contextmanager
def on_the_device() -> Iterator[None]:
    """Raises where a tensor is made of numbers of the host, or goes from one place to the other."""
    with _NoNewTensors(), _NothingOfTheHost():
        yield


@pytest.mark.parametrize(
    "reads", [Tensor.item, Tensor.nonzero, bool, lambda t: t[t > 0], lambda t: t.cpu(), lambda t: t.new_tensor(1.0)]
)
def test_what_a_capture_forbids_is_found(reads: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)), on_the_device():
        reads(torch.ones(1, device="meta"))


NOISE = {
    "dropout": {"dropout": 0.3},
    "variational dropout": {"dropout": 0.3, "variational_dropout": True},
    "recurrent dropout": {"recurrent_dropout": 0.2},
    "weight drop": {"weight_drop": 0.2},
    "zoneout": {"zoneout": 0.2, "zoneout_cell": 0.4},
    "word dropout": {"word_dropout": 0.2},
    "word dropout by type": {"word_dropout": 0.2, "word_dropout_unit": "type"},
}
OUTPUTS: dict[str, dict[str, Any]] = {
    f"loss in chunks, vocabulary of {size}": {"vocab_size": size, "logits_memory_mb": 1} for size in (40, 90_000)
}
OUTPUTS["copying in chunks"] = {"copy_mechanism": True, "vocab_size": 90_000, "logits_memory_mb": 1}
SYSTEMS = {f"preset {name}": name for name in PRESETS}


def one_model(case: str) -> Any:
    """A model in training mode, on no device."""
    if case in SYSTEMS:
        preset = PRESETS[SYSTEMS[case]]()
        small = {"hidden_size": 8, "embedding_size": 8, "encoder_hidden_size": None, "readout_size": None}
        small |= {name: 8 for name in ("attention_size", "readout_size", "context_size") if preset.get(name)}
        return tiny_model(tiny_config(**{**preset, **small}), dtype=torch.float32).train().to("meta")
    options = TWO_LAYERS | (CASES | LOSSES | NOISE | OUTPUTS)[case]
    options |= {"max_source_positions": 8} if options.get("attention_type") == "location" else {}
    return tiny_model(**options, dtype=torch.float32).train().to("meta")


def one_batch(model: Any) -> dict[str, Tensor]:
    given = batch()
    if model.config.guided_alignment_weight:
        given["alignments"] = torch.zeros(*given["labels"].shape, given["input_ids"].shape[1], dtype=torch.bool)
    return {name: tensor.to("meta") for name, tensor in given.items()}


@pytest.mark.parametrize("case", [*CASES, *LOSSES, *NOISE, *OUTPUTS, *SYSTEMS])
def test_a_training_step_needs_nothing_of_the_host(case: str) -> None:
    """Forward and backward of every option that `record_training` does not refuse."""
    model = one_model(case)
    model.record_training(print)
    given = one_batch(model)
    with on_the_device():
        model(**given, skip_logits=True, output_figures=True).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_what_is_refused_is_what_cannot() -> None:
    """Scheduled sampling looks where a word of the model's own is wanted."""
    model = tiny_model(teacher_forcing_ratio=0.5, dtype=torch.float32).train().to("meta")
    given = one_batch(model)
    with pytest.raises((RuntimeError, NotImplementedError)), on_the_device():
        model(**given, skip_logits=True)


def test_a_loss_computed_again_in_chunks_leaves_the_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their state may not be read in a capture; meta tensors have no generator that would say so."""
    model = tiny_model(copy_mechanism=True, vocab_size=90_000, logits_memory_mb=1, dtype=torch.float32).train()
    monkeypatch.setattr(torch, "get_rng_state", lambda: pytest.fail("the state of a generator is read"))
    model(**batch(), skip_logits=True).loss.backward()


def test_the_part_of_the_loop_that_is_recorded() -> None:
    """A micro-batch in the training loop: its sums, its share, its figures."""
    chosen = arguments(None, cuda_graphs=True, dry_run=True)
    loop = build_loop("rnn", chosen, build_accelerator(dataclasses.replace(chosen, cuda_graphs=False)))
    loop.prepare_state(None)
    loop.model.to("meta")
    loop._loss_sum, loop._figure_sums = loop._loss_sum.to("meta"), loop._figure_sums.to("meta")
    given, one = one_batch(loop.model), torch.ones((), device="meta")
    with on_the_device():
        loop._train_on(tuple(given), one, one, *given.values())


@pytest.mark.parametrize("case", [*CASES, *(f"fused: {name}" for name in FUSED)])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_step_of_decoding_needs_nothing_of_the_host(case: str, beams: int) -> None:
    """The steps that are captured, and the scores after them."""
    options = FUSED[case.removeprefix("fused: ")] if case.startswith("fused: ") else TWO_LAYERS | CASES[case]
    model = tiny_model(**options, dtype=torch.float32).to("meta")
    given = one_batch(model)
    del given["labels"]
    for kind in (GeneralStep, FusedStep) if can_fuse(model) else (GeneralStep,):
        step = kind(model)
        with torch.no_grad(), on_the_device():
            state = step.start(step.read(**given), beams)
            tokens = torch.ones(len(given["input_ids"]) * beams, dtype=torch.long, device="meta")
            for need_weights in (False, step.has_weights):
                readout, _, state = step(tokens, state, need_weights)
                step.normalisers(step.scores(readout))
