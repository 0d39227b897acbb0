"""The task `text`: running text is read, and what comes next is written (Graves 2013, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq import RnnCausalConfig
from hf_rnn_seq2seq.data.contiguous import ContiguousText
from hf_rnn_seq2seq.data.running_text import RunningText, build_tokenizer, load_text, token_ids
from hf_rnn_seq2seq.errors import ArgumentError, reading
from hf_rnn_seq2seq.evaluation.held_out_text import write_text
from hf_rnn_seq2seq.generation.batches import evaluation_mode
from hf_rnn_seq2seq.generation.surprise import score_text
from hf_rnn_seq2seq.model.decoder_state import NO_SOURCE, DecoderState, RnnSeq2SeqCache
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL
from hf_rnn_seq2seq.run_directory import read_tokenizer
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.components import Start, TaskParts, load_start, make_tokenizer, require_entries


def parts(start: Start) -> TaskParts:
    """Tokenizer, streams of tokens, model and the bits of held-out text."""
    options, log = start.options, start.log
    text = load_text(options.data)
    if "train" not in text.splits:
        raise ArgumentError("train_file=None: there is no text to train on")
    tokenizer = text_tokenizer(start, text)
    model = make_model(options, tokenizer)
    # The circle is closed by the end token.
    tokens = np.append(token_ids(tokenizer, text.splits["train"]), np.int32(tokenizer.eos_token_id))
    for split in text.splits:
        log(f"{split}: {text.characters(split):,} characters" + (f", {len(tokens):,} tokens" * (split == "train")))
    data = ContiguousText(tokens, options.data.max_target_length, tokenizer.bos_token_id, tokenizer.pad_token_id)
    training = options.training
    streams = training.per_device_train_batch_size * training.gradient_accumulation_steps
    streams *= start.accelerator.num_processes
    width = text.characters("train") / len(tokens)
    return TaskParts(
        text.description,
        model,
        data,
        dict,  # pieces of streams are made as tensors
        make_validator(options, text, tokenizer),
        tokenizer.save_pretrained,
        (len(tokenizer), len(tokenizer)),
        CarriedState(model, streams, width, start.accelerator.is_main_process),
        facts={"characters_per_token": width},
    )


class CarriedState(nn.Module):
    """The loss of the pieces of some streams, each read from the state in which the piece before left its stream.

    Gradients stop at the beginning of a piece (truncated backpropagation through time).

    Args:
        model: the language model.
        streams: their number, over all processes and micro-batches.
        characters_per_token: of the text, on average.
        main: whether this is the main process, which answers for the states that no process has read yet.
    """

    figures: tuple[str, ...] = ("bits_per_character",)

    def __init__(
        self, model: PreTrainedModel, streams: int, characters_per_token: float = 1.0, main: bool = True
    ) -> None:
        super().__init__()
        self.model, self.characters_per_token = model, characters_per_token
        # One row more, which fillers write.
        like = next(model.parameters()).new_empty(streams + 1, 1)
        # Copies: the layers' zeros may be one tensor, and these are written.
        self.state: DecoderState = model.model.decoder.zero_state(like, NO_SOURCE).map(torch.clone)
        self.main, self.own = main, torch.full((streams + 1,), main)
        self.reads = False

    def forward(self, input_ids: Tensor, labels: Tensor, streams: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss over the labels, (), and (1, 2), the bits of the labels and their characters.

        Args:
            input_ids: (rows, length).
            labels: (rows, length), the token after each input; -100 past the end of a stream.
            streams: (rows,), their numbers.
            begins: bool (rows,), True where a stream starts: its state is zero.
        """
        self.state = self.state.map(lambda table: table.to(streams.device))
        cache, goes_on = RnnSeq2SeqCache(), ~begins
        before = self.state.map(lambda table: table[streams] * goes_on.view(-1, *[1] * (table.dim() - 1)))
        cache.start(before, NO_SOURCE)
        output = self.model(input_ids, cache=cache, shift_labels=labels, use_cache=True, skip_logits=True)
        finite = torch.isfinite(output.loss.detach())  # the loop skips other updates, and so does the state
        if not self.reads:
            self.own.zero_()
            self.reads = True
        self.own[streams.cpu()] = True
        pairs = zip(self.state.tensors(), before.tensors(), output.cache.state.tensors(), strict=True)
        for table, old, new in pairs:
            table[streams] = torch.where(finite, new.detach().to(table.dtype), old)
        count = (labels != IGNORED_LABEL).sum()
        bits = torch.where(finite, output.loss.detach(), 0.0) * count / math.log(2)
        return output.loss, torch.stack([bits, count * self.characters_per_token]).unsqueeze(0)

    def carried(self) -> dict[str, Tensor]:
        """The states of this process's streams by name, zero for the others': over all processes their sum counts."""
        own = self.own[:-1].to(self.state.position.device)
        tables = (table[:-1] * own.view(-1, *[1] * (table.dim() - 1)) for table in self.state.tensors())
        return {str(number): table for number, table in enumerate(tables)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Sets the sum of what `carried` gave."""
        self.own.fill_(self.main)
        self.reads = False
        for number, table in enumerate(self.state.tensors()):
            table[:-1] = tensors[str(number)].to(table)


def text_tokenizer(start: Start, text: RunningText) -> PreTrainedTokenizerBase:
    """See `make_tokenizer`; it must have the special tokens that a text needs."""
    named = start.options.tokenizer.tokenizer_name_or_path

    def load(name: str) -> PreTrainedTokenizerBase:
        with reading(f"the tokenizer of {name!r}", ArgumentError):
            return read_tokenizer(name)

    new = partial(build_tokenizer, text.splits["train"], start.options.tokenizer)
    tokenizer = make_tokenizer(start, new, load=load)
    for name in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ArgumentError(f"tokenizer_name_or_path={named!r}: has no {name}, which a text needs; add one")
    return tokenizer


def make_model(options: RunOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A language model that fits the tokenizer: of a checkpoint, of a preset, or of configuration fields."""
    name, preset = options.training.model_name_or_path, options.model.get("preset")
    if name:
        model = load_start(options, AutoModelForCausalLM)
        require_entries(options, model, {"vocab_size": len(tokenizer)})
    else:
        fields = {key: value for key, value in options.model.items() if key != "preset"}
        fields |= {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
        fields["vocab_size"] = len(tokenizer)
        config = RnnCausalConfig.from_preset(preset, **fields) if preset else RnnCausalConfig(**fields)
        model = AutoModelForCausalLM.from_config(config)
    # The most probable continuation of a text repeats itself.
    model.generation_config.do_sample = True
    model.generation_config.max_new_tokens = options.generation.max_new_tokens
    return model


class TextValidator:
    """Measures the bits of held-out text, and samples a text.

    Args:
        score: the figures of a model on the held-out text.
        sample: writes a text with a model.
    """

    def __init__(
        self, score: Callable[[PreTrainedModel], dict[str, float]], sample: Callable[[PreTrainedModel], str]
    ) -> None:
        self._score, self._sample = score, sample
        self.sample: str | None = None  # of the last measurement

    def measure(self, step_module: nn.Module, model: PreTrainedModel, accelerator: Accelerator) -> dict[str, float]:
        """The figures of `TextScore`. Every process reads the whole text, which takes seconds."""
        with evaluation_mode(model):
            self.sample = self._sample(model)
            return self._score(model)


def make_validator(options: RunOptions, text: RunningText, tokenizer: PreTrainedTokenizerBase) -> TextValidator | None:
    """Measures the validation text, in as many parts side by side as an evaluation batch has rows."""
    if "validation" not in text.splits:
        return None
    held_out, rows = text.splits["validation"], options.training.per_device_eval_batch_size

    def score(model: PreTrainedModel) -> dict[str, float]:
        return score_text(model, tokenizer, held_out, parts=rows).figures()

    return TextValidator(score, partial(write_text, tokenizer=tokenizer, tokens=options.generation.max_new_tokens))
