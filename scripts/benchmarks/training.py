"""Variants of one training step: speed, memory, loss, and the share of the peak speed of the machine."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmarks.measure import (
    clock,
    device_peak_mb,
    in_child,
    product_rate,
    random_batch,
    take_turns,
    training_flops,
)
from torch import Tensor
from torch.nn import functional as F

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration

# Model A is small enough for a CPU; B is about the size of a published system, with one layer below the attention.
MODELS: dict[str, dict[str, Any]] = {
    "A": {"vocab_size": 8000, "embedding_size": 256, "hidden_size": 512},
    "B": {
        "vocab_size": 32000,
        "embedding_size": 512,
        "hidden_size": 512,
        "encoder_layers": 2,
        "decoder_layers": 4,
        "attention_layer": "bottom",
        "context_layers": "all",
    },
}
BATCHES = {"A": (64, 14, 15), "B": (128, 30, 30)}  # rows, longest source, longest target
GROWTH: dict[str, tuple[int, ...]] = {
    "length": (10, 20, 40, 80, 200, 500),
    "vocab_size": (8_000, 32_000, 128_000),
    "hidden_size": (128, 256, 384, 512, 1024),
    "encoder_layers": (1, 2, 4),
    "decoder_layers": (1, 2, 4),
    "batch_size": (16, 64, 256),
    "processes": (1, 2),
}

Build = Callable[..., RnnSeq2SeqForConditionalGeneration]


def fill_in_sizes(arguments: Namespace) -> None:
    """Sets sizes that were not given to those of the model `--sizes`."""
    lengths = zip(("batch_size", "source_length", "target_length"), BATCHES[arguments.sizes], strict=True)
    defaults = {**MODELS[arguments.sizes], **dict(lengths)}
    if arguments.what == "decode" and arguments.model is not None:
        del defaults["target_length"]
    for name, value in defaults.items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)


def build_model(arguments: Namespace, **fields: Any) -> RnnSeq2SeqForConditionalGeneration:
    """A model with random weights, or the checkpoint `--model`; `fields` replace those of its config."""
    torch.manual_seed(0)
    if arguments.model is not None:
        config = RnnSeq2SeqConfig.from_pretrained(arguments.model)
        changed = RnnSeq2SeqConfig(**{**config.to_dict(), **fields})
        return RnnSeq2SeqForConditionalGeneration.from_pretrained(arguments.model, config=changed)
    sizes = {name: getattr(arguments, name) for name in (*MODELS[arguments.sizes], "cell_type")}
    return RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(**{**sizes, **fields}))


def run(arguments: Namespace) -> list[dict[str, Any]]:
    """Measures the variants and prints a table."""
    build = partial(build_model, arguments)
    config = build().config
    lengths = arguments.source_length, arguments.target_length
    vocabularies = config.source_vocab_size, config.vocab_size
    source, labels = random_batch(arguments.batch_size, *lengths, vocabularies, full=arguments.full_rows)
    report = compare_training(build, source, labels, arguments)
    print_training(report, arguments.device)
    return report


def tutorial_loss(model: RnnSeq2SeqForConditionalGeneration, source: Tensor, labels: Tensor) -> Tensor:
    """The loss as a tutorial computes it, with all products of torch inside the loop over positions."""
    inner, config = model.model, model.config
    encoded = inner.encoder(source)
    layers, _ = inner.bridge(encoded)
    state, kernel = layers[0], inner.decoder.layers[0].kernel
    cell = (kernel.weight_ih_l0, kernel.weight_hh_l0, kernel.bias_ih_l0, kernel.bias_hh_l0)
    feed = state[0].new_zeros(len(source), config.readout_size)
    words = model.prepare_decoder_input_ids_from_labels(labels)
    total = 0.0
    for time_step in range(labels.shape[1]):
        inputs = torch.cat([inner.decoder.embed(words[:, time_step]), feed], 1)
        state = torch.lstm_cell(inputs, state, *cell) if len(state) == 2 else (torch.gru_cell(inputs, state[0], *cell),)
        keys = F.linear(encoded.last_hidden_state, inner.decoder.attention.key.weight)
        scores = torch.bmm(keys, state[0].unsqueeze(2)).squeeze(2).masked_fill(~encoded.source_mask, float("-inf"))
        context = torch.bmm(scores.softmax(1).unsqueeze(1), encoded.last_hidden_state).squeeze(1)
        feed = torch.tanh(F.linear(torch.cat([state[0], context], 1), inner.decoder.readout.project.weight))
        logits = F.linear(feed, model.lm_head.weight, model.lm_head.bias)
        total = total + F.cross_entropy(logits, labels[:, time_step], ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum()


def model_loss(model: RnnSeq2SeqForConditionalGeneration, source: Tensor, labels: Tensor) -> Tensor:
    """The loss of the training step of the model, without logits, as scripts/train.py asks for it."""
    return model(input_ids=source, labels=labels, skip_logits=True).loss


def has_tutorial_form(config: RnnSeq2SeqConfig) -> bool:
    """Whether `tutorial_loss` computes the loss of this model."""
    attention = config.attention_type, config.attention_order, config.attention_window
    return (
        config.context == "attention"
        and attention == ("general", "after_cell", "global")
        and (config.decoder_layers, config.decoder_transition_depth, config.layer_norm) == (1, 1, False)
        and (config.readout, config.readout_embedding, config.input_feeding) == ("tanh", False, True)
        and config.cell_type in ("lstm", "gru")
        and config.gru_reset == "after"
    )


def training_step(
    model: RnnSeq2SeqForConditionalGeneration,
    loss_of: Callable,
    source: Tensor,
    labels: Tensor,
    fused: bool = True,
    bf16: bool = False,
) -> Callable[[], float]:
    """A function that makes one update with Adam and returns its loss."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)

    def step() -> float:
        with torch.autocast(source.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(model, source, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def training_forms(
    build: Build, source: Tensor, labels: Tensor, other_models: bool = True, device: str = "cpu"
) -> dict[str, Callable[[], Callable[[], float]]]:
    """Functions that build the training step of each variant; the first is the reference of the ratios.

    Args:
        build, source, labels: as for `compare_training`.
        other_models: also measure the model without input feeding, for which a checkpoint has no weights.
    """
    config = build().config

    def form(loss_of: Callable = model_loss, fused: bool = True, bf16: bool = False, **fields: Any) -> Callable:
        def make() -> Callable[[], float]:
            batch = source.to(device), labels.to(device)
            return training_step(build(**fields).to(device), loss_of, *batch, fused, bf16)

        return make

    forms = {"tutorial": form(tutorial_loss, fused=False)} if has_tutorial_form(config) else {}
    path = build(decoder_recurrence="auto").get_decoder().recurrence_path
    if path == "at once":
        return {"at once": form(), "at once bf16": form(bf16=True)}
    kinds = ["loop", "scan"] if path == "scan" else ["loop"]
    for kind in kinds:
        forms[kind] = form(decoder_recurrence=kind)
        forms[f"{kind} bf16"] = form(decoder_recurrence=kind, bf16=True)
    if other_models and config.attention_order == "after_cell" and config.input_feeding:
        forms["no feeding"] = form(input_feeding=False)
        forms["no feeding bf16"] = form(input_feeding=False, bf16=True)
    return forms


def compare_training(build: Build, source: Tensor, labels: Tensor, arguments: Namespace) -> list[dict[str, Any]]:
    """Measures each variant; ratios are relative to the first, of CPU time, or of wall time on a device.

    Args:
        build: builds a model; keyword arguments replace fields of its config.
        source: ids (batch, source).
        labels: ids (batch, target).
        arguments: `model`, a checkpoint or None; `rounds`; `threads`; `device`; `memory`, whether to measure peak
            memory, on a CPU in a process for each variant.
    """
    device, seconds = arguments.device, clock(arguments.device)
    forms = training_forms(build, source, labels, arguments.model is None, device)
    peaks = {}
    for name, make in forms.items():
        peaks[name] = None
        if arguments.memory and device == "cuda":
            peaks[name] = device_peak_mb(lambda make=make: _two_steps(make()))
        elif arguments.memory:
            peaks[name] = in_child(lambda make=make: _two_steps(make()), arguments.threads)["peak_mb"]
    torch.set_num_threads(arguments.threads)

    def measured_rates() -> dict[str, float]:
        types = {"": torch.float32, " bf16": torch.bfloat16}
        return {name: product_rate(dtype, device=device) for name, dtype in types.items()}

    rates = measured_rates()
    rows = take_turns({name: make() for name, make in forms.items()}, arguments.rounds, device)
    # The maximum of before and after, since the speed of a shared machine changes.
    rates = {name: max(rates[name], rate) for name, rate in measured_rates().items()}
    words, first = int((labels != -100).sum()), next(iter(rows))
    report = []
    for name, row in rows.items():
        flops = training_flops(build(input_feeding=False) if "no feeding" in name else build(), source, labels)
        rate = rates[" bf16" if "bf16" in name else ""]
        report.append(
            {
                "variant": name,
                "tokens_per_s": words / row["wall_s"],
                "cpu_s": row["cpu_s"],
                "peak_mb": peaks[name],
                "ratio_to_reference": rows[first][seconds] / row[seconds],
                "wall_ratio": rows[first]["wall_s"] / row["wall_s"],
                "share_of_peak": flops / row[seconds] / rate,
                "peak_gflops": rate / 1e9,
                **{key: row[key] for key in ("wall_s", "least_wall_s", "least_cpu_s", "value")},
            }
        )
    return report


def _two_steps(step: Callable[[], float]) -> dict[str, float]:
    step()
    return {"loss": step()}


def print_training(report: list[dict[str, Any]], device: str = "cpu") -> None:
    """Prints the table of `compare_training`."""
    from hf_rnn_seq2seq.evaluation.results import format_table

    columns = ["tokens/s", "wall ms", "least", "CPU ms", "least", "ratio", "of peak", "peak MB", "first loss"]
    rows = [["variant", *columns]]
    for row in report:
        times = [f"{1e3 * row[key]:.1f}" for key in ("wall_s", "least_wall_s", "cpu_s", "least_cpu_s")]
        ratios = [f"{row[key]:.2f}" for key in ("ratio_to_reference", "share_of_peak")]
        peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        rows.append([row["variant"], f"{row['tokens_per_s']:.0f}", *times, *ratios, peak, f"{row['value']:.5f}"])
    print(format_table(rows))
    rates = {"bf16" if "bf16" in row["variant"] else "float32": row["peak_gflops"] for row in report}
    kind = "CPU" if clock(device) == "cpu_s" else "wall"
    print("peak: " + ", ".join(f"{rate:.0f} GFLOP/s of {kind} time in {dtype}" for dtype, rate in rates.items()))
