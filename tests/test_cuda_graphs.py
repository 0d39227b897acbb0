"""Training with `cuda_graphs`: padded to few shapes, with a recorded step. Off CUDA a replay reruns the step."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq import ConfigError
from hf_rnn_seq2seq.arguments import ArgumentError
from hf_rnn_seq2seq.batching import Collator, to_few_shapes
from hf_rnn_seq2seq.run_control import build_accelerator
from tests.model_cases import CASES, TWO_LAYERS
from tests.models import SOURCES, TARGETS, tiny_model
from tests.training_runs import arguments, build_loop, build_model, corpus, log_lines, text_stream

LOSSES = {
    "label smoothing": {"label_smoothing": 0.1},
    "coverage loss": {"coverage_loss": 0.5},
    "guided alignment": {"guided_alignment_weight": 0.5},
    "copying, smoothed, in chunks": {"copy_mechanism": True, "label_smoothing": 0.1, "logits_memory_mb": 1},
}


def batches(model: Any) -> list[dict[str, Tensor]]:
    """The same rows with the padding they need, and padded to few shapes; seventeen rows so that some are added."""
    sources = [[word % model.config.source_vocab_size for word in row] for row in SOURCES]
    columns: dict[str, Any] = {"input_ids": (sources * 6)[:17], "labels": (TARGETS * 6)[:17]}
    if model.config.guided_alignment_weight:
        columns["alignment"] = [[0, 0, 1, 1]] * 17
    return [collate(columns) for collate in (Collator(), to_few_shapes(Collator(), 0))]


@pytest.mark.parametrize("case", [*CASES, *LOSSES])
def test_padding_to_few_shapes_changes_neither_loss_nor_gradients(case: str) -> None:
    """Rows that hold padding alone and columns without a word, in every configuration."""
    options = TWO_LAYERS | (CASES | LOSSES)[case]
    options |= {"max_source_positions": 8} if options.get("attention_type") == "location" else {}
    told = []
    for turn in range(2):
        model = tiny_model(**options).train()
        for name in ("zoneout", "weight_drop"):  # drawn for each row and position: other shapes, other draws
            for module in model.modules():
                setattr(module, name, None if name == "zoneout" else 0.0) if hasattr(module, name) else None
        batch = batches(model)[turn]
        output = model(**batch, output_figures=True)
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        told.append((output.loss.detach(), output.figures, gradients))
    assert [tuple(tensor.shape) for tensor in batch.values()][:3] == [(18, 8)] * 3
    assert told[0][2].keys() == told[1][2].keys() and told[0][0] > 1
    torch.testing.assert_close(told[1], told[0])


def test_the_shapes_are_few() -> None:
    rows, widths = set(), set()
    collate = to_few_shapes(Collator(), 0)
    for count, width in itertools.chain(((n, 3) for n in range(1, 513)), ((2, n) for n in range(1, 60))):
        shape = collate({"input_ids": [[5] * width] * count, "labels": [[6] * width] * count})["labels"].shape
        assert count <= shape[0] <= 1.125 * count and width <= shape[1] < width + 8
        rows.add(shape[0]), widths.add(shape[1])
    assert len(rows) <= 57 and widths == set(range(8, 65, 8))


STREAM = {"max_train_seconds": 600.0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}


def run(tmp_path: Path, kind: str, streamed: bool, **options: Any) -> Any:
    """A loop after 12 updates, over a table or over a stream of which half the rows are too long."""
    chosen = arguments(tmp_path, **options, **(STREAM if streamed else {}))
    # The one that a run without graphs gets on a CPU.
    accelerator = build_accelerator(dataclasses.replace(chosen, cuda_graphs=False))
    loop = build_loop(kind, chosen, accelerator, train=text_stream(70, 24, longest=5) if streamed else corpus(70))
    loop.run()
    return loop


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("kind", ["rnn", "rnn_tied"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_with_graphs_is_the_same_run(tmp_path: Path, kind: str, streamed: bool, precision: str) -> None:
    """Weights, losses and figures; also with the fillers that a stream leaves where all rows of a part are too long."""
    loops = [run(tmp_path / str(on), kind, streamed, cuda_graphs=on, mixed_precision=precision) for on in (False, True)]
    assert 1 <= loops[1]._train.captured <= 4 and loops[1].state.progress.left_out_rows >= 9 * streamed
    rough = {"rtol": 0.1, "atol": 0.03} if precision == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(loops[1].model.state_dict(), loops[0].model.state_dict(), **rough)
    lines = [[(x["loss"], x["attention_entropy"]) for x in log_lines(loop.output_dir, "train")] for loop in loops]
    assert len(lines[0]) == 12
    torch.testing.assert_close(torch.tensor(lines[1]), torch.tensor(lines[0]), **rough)


def test_gradients_stay_where_they_are(tmp_path: Path) -> None:
    """A graph adds to the tensors it was captured with; a parameter that takes no part has none, and none appears."""
    chosen = arguments(None, cuda_graphs=True, dry_run=True, weight_decay=0.1)
    accelerator = build_accelerator(dataclasses.replace(chosen, cuda_graphs=False))
    model = build_model("rnn")
    model.idle = torch.nn.Parameter(torch.ones(2))
    loop = build_loop("rnn", chosen, accelerator, model=model)
    loop.prepare_state(None)
    places: list[dict[str, int | None]] = []
    for update in itertools.islice(loop.plan.updates(), 12):
        loop.run_update(update, loop.loader.load(update))
        found = {name: p.grad if p.grad is None else p.grad.data_ptr() for name, p in model.named_parameters()}
        places.append(found)
        assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert loop._train.captured and all(found == places[0] for found in places)
    assert [name for name, place in places[0].items() if place is None] == ["idle"] and (model.idle == 1).all()


def test_a_filler_counts_for_nothing() -> None:
    """A row that stands where a process has none, in the sums and in the gradient."""
    chosen = arguments(None, dry_run=True)
    loop = build_loop("rnn", chosen, build_accelerator(chosen))
    loop.prepare_state(None)
    given, nothing = Collator()({"input_ids": [[5, 2]], "labels": [[6, 2]]}), torch.zeros(())
    loop._train_on(tuple(given), nothing, nothing, *given.values())
    assert not any(p.grad.any() for p in loop.model.parameters()) and not loop._loss_sum.any()
    assert len(loop._figure_sums) == 1 and not loop._figure_sums.any()
    loop._train_on(tuple(given), nothing + 2, nothing + 1, *given.values())
    assert loop._figure_sums[0, 1] == 2 and loop._loss_sum > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_precision": "fp16"}, "mixed_precision='fp16': must be 'bf16' or 'no' with cuda_graphs"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing=True: must be False with cuda_graphs"),
        (
            {"objective": "reinforce", "model_name_or_path": "x"},
            "objective='reinforce': must be 'ml' with cuda_graphs",
        ),
    ],
)
def test_options_that_no_graph_can_hold(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        arguments(None, cuda_graphs=True, **options)
    assert str(refused.value) == message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, where alone graphs are captured")
@pytest.mark.parametrize("case", ["cell lstm", "cell gru", "no feeding", "before, bottom, all", "copying", "one layer"])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_training_step_on_a_device(case: str, bf16: bool) -> None:
    """Two shapes in turns: the sums of gradients after a first, a capturing and two replaying calls of each."""
    sums = []
    for recorded in (False, True):
        model = tiny_model(**TWO_LAYERS | CASES[case], dtype=torch.float32, deviation=0.2).cuda().train()

        def train(source: Tensor, labels: Tensor, model: Any = model) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                loss = model(input_ids=source, labels=labels).loss
            loss.backward()
            return loss.detach()

        step, losses = model.record_training(train) if recorded else train, []
        generator = torch.Generator().manual_seed(0)
        for number in range(8):
            words = torch.randint(3, 11, (2, 8, 6 + number % 2), generator=generator).cuda()
            losses.append(step(words[0], words[1]))
        sums.append((torch.stack(losses), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(
        sums[1], sums[0], **({"rtol": 0.05, "atol": 0.02} if bf16 else {"rtol": 1e-4, "atol": 1e-5})
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_and_a_model_that_can(tmp_path: Path) -> None:
    chosen = arguments(tmp_path, cuda_graphs=True)
    with pytest.raises(ArgumentError, match="cuda_graphs=True: needs one process on a CUDA device; there is 1 on cpu"):
        build_accelerator(chosen)
    accelerator = build_accelerator(dataclasses.replace(chosen, cuda_graphs=False))
    with pytest.raises(ArgumentError, match="cuda_graphs=True: BartForConditionalGeneration has no record_training"):
        build_loop("bart", chosen, accelerator).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_forcing_ratio": 0.5}, "teacher_forcing_ratio=0.5: must be 1 with cuda_graphs"),
        (
            {"scheduled_sampling": "linear", "scheduled_sampling_decay": 0.1},
            "scheduled_sampling='linear': must be 'none' with cuda_graphs",
        ),
        (
            {"attention_type": "location", "max_source_positions": 12},
            "max_source_positions=12: must be a multiple of 8 with cuda_graphs, as widths are",
        ),
    ],
)
def test_models_whose_step_changes_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        tiny_model(**options).record_training(print)
    assert str(refused.value) == message
