"""Exports a trained model as two ONNX files, and compares them with the model before they are written.

`onnx_runtime.py` translates with the files and imports neither torch nor this module.
"""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.export.graphs import Programs, export_programs, recurrence
from hf_rnn_seq2seq.export.onnx_runtime import DECODER, ENCODER, SETTINGS, OnnxTranslator
from hf_rnn_seq2seq.files import whole_folder
from hf_rnn_seq2seq.model.dropout import without_noise
from hf_rnn_seq2seq.model.modeling_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.search_options import longest_output

OPSET = 18
# The largest difference between the float32 logits of torch and ONNX that passes the check.
TOLERANCE = 2e-4


def export_onnx(
    model: RnnSeq2SeqForConditionalGeneration, output: str | os.PathLike[str], programs: Programs | None = None
) -> float:
    """Writes OUTPUT/{encoder.onnx, decoder.onnx, decoding.json} in float32.

    Args:
        model: it is not changed.
        output: a new or empty folder.
        programs: the result of `export_programs(model)`, to save its time.

    Returns:
        The largest difference between the logits of torch and ONNX, on sentences of other lengths than the traced ones.

    Raises:
        ArgumentError: torch is older than 2.9, the model has an option that cannot be exported, or the logits differ.
        FileExistsError: the folder is not empty.
    """
    with whole_folder(output) as folder:
        settings = decoding_settings(model)
        if {parameter.dtype for parameter in model.parameters()} != {torch.float32}:
            raise ArgumentError("the model is not in float32; load it with dtype=torch.float32")
        # Older releases make sizes constant that must be dynamic.
        if tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 9):
            raise ArgumentError(f"torch {torch.__version__}: the export to ONNX needs torch 2.9 or newer")
        _write(programs or export_programs(model), folder)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        difference = compare(model, OnnxTranslator(folder))
        if not difference <= TOLERANCE:
            raise ArgumentError(f"ONNX and torch differ by {difference:.2g} in logits; nothing was written")
    return difference


def decoding_settings(model: RnnSeq2SeqForConditionalGeneration) -> dict[str, Any]:
    """The settings of the decoding loop, from the generation config of the model.

    Raises:
        ArgumentError: the generation config has an option that the loop does not support.
    """
    config = model.generation_config
    # Options that the loop does not support, with the value that turns each off.
    neutral: dict[str, Any] = {
        "do_sample": False,
        "no_repeat_ngram_size": 0,
        "repetition_penalty": 1.0,
        "min_length": 0,
        "min_new_tokens": None,
        "bad_words_ids": None,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "sequence_bias": None,
        "encoder_repetition_penalty": 1.0,
        "encoder_no_repeat_ngram_size": 0,
        "exponential_decay_length_penalty": None,
        "stop_strings": None,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "num_beam_groups": 1,
    }
    for name, value in neutral.items():
        setting = getattr(config, name, None)
        if setting not in (None, value):
            raise ArgumentError(
                f"{name}={setting!r} in the generation config: an exported model has greedy and beam search only"
            )
    ends, start = config.eos_token_id, config.decoder_start_token_id
    return {
        "decoder_start_token_id": config.bos_token_id if start is None else start,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": [ends] if isinstance(ends, int) else list(ends or []),
        "max_new_tokens": longest_output(config) or 128,
        "num_beams": config.num_beams or 1,
        "length_penalty": 1.0 if config.length_penalty is None else config.length_penalty,
        "early_stopping": config.early_stopping or False,
    }


@torch.no_grad()
def compare(model: RnnSeq2SeqForConditionalGeneration, translator: OnnxTranslator) -> float:
    """The largest difference between the logits of three words, for a ragged batch and for a single row."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, model.config.vocab_size, (4, 3), generator=generator)
    largest = 0.0
    with without_noise(model):
        for lengths in ([9, 2, 7, 1], [4]):
            ids = torch.randint(0, model.config.source_vocab_size, (len(lengths), max(lengths)), generator=generator)
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
            target = words[: len(lengths)]
            expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits
            state, memory = translator.encode(ids.numpy(), mask.numpy())
            for time in range(target.shape[1]):
                logits, _, state = translator.step(target[:, time].numpy(), state, memory)
                largest = max(largest, float((expected[:, time] - torch.from_numpy(logits)).abs().max()))
    return largest


def _write(programs: Programs, folder: Path) -> None:
    start = [*programs.state, *programs.memory]
    after = ["logits", *(["weights"] if programs.has_weights else []), *(f"next_{name}" for name in programs.state)]
    _convert(programs.encoder, ["input_ids", "attention_mask"], start, folder / ENCODER)
    _convert(programs.decoder, ["words", *start], after, folder / DECODER)


def _convert(program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str], path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Warnings of the exporter about itself; `compare` checks the result.
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                custom_translation_table={torch.ops.hf_rnn_seq2seq.recurrence.default: _translation()},
                verbose=False,
            )
        converted.save(str(path), external_data=False)
    except Exception as error:  # the classes of the exporter differ between releases
        raise ArgumentError(f"{path.name}: torch.onnx failed: {' '.join(str(error).split())[:300]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _translation() -> Any:
    """`recurrence` by operators of ONNX, whose gates are in another order than those of torch."""
    from onnxscript import opset18 as op

    def gates(weight: Any, order: tuple[int, ...], count: int) -> Any:
        if count == 1:
            return weight
        blocks = list(op.Split(weight, axis=0, num_outputs=count))
        return op.Concat(*(blocks[number] for number in order), axis=0)

    def translate(
        inputs: Any,
        hidden: Any,
        cell: Any,
        lengths: Any,
        weight_ih: Any,
        weight_hh: Any,
        bias_ih: Any,
        bias_hh: Any,
        kind: str,
    ) -> Any:
        # torch: LSTM input, forget, new, output; GRU reset, update, new.
        # ONNX: LSTM input, output, forget, new; GRU update, reset, new.
        order = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}.get(kind, (0,))
        count = len(order)
        zero = op.Constant(value_ints=[0])
        weights = [op.Unsqueeze(gates(weight, order, count), zero) for weight in (weight_ih, weight_hh)]
        bias = op.Concat(gates(bias_ih, order, count), gates(bias_hh, order, count), axis=0)
        size = int(weight_hh.shape[1])
        arguments = (
            op.Transpose(inputs, perm=[1, 0, 2]),
            *weights,
            op.Unsqueeze(bias, zero),
            op.Cast(lengths, to=6),  # int32
            op.Unsqueeze(hidden, zero),
        )
        if kind == "lstm":
            outputs, end, ended = op.LSTM(*arguments, op.Unsqueeze(cell, zero), hidden_size=size)
        elif kind == "gru":
            outputs, end = op.GRU(*arguments, hidden_size=size, linear_before_reset=1)
        else:
            outputs, end = op.RNN(*arguments, hidden_size=size, activations=["Relu" if kind == "rnn_relu" else "Tanh"])
        # (time, directions, batch, hidden) -> (batch, time, hidden)
        outputs = op.Transpose(op.Squeeze(outputs, op.Constant(value_ints=[1])), perm=[1, 0, 2])
        ended = op.Squeeze(ended, zero) if kind == "lstm" else op.Identity(cell)
        return outputs, op.Squeeze(end, zero), ended

    return translate


__all__ = ["compare", "decoding_settings", "export_onnx", "recurrence"]
