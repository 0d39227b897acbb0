"""The tree of a beam search: each prefix that was a beam at some step, drawn from left to right.

A logits processor, which changes nothing, records the prefixes while `generate()` runs.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import target_pieces
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.batches import until_end
from hf_rnn_seq2seq.generation.encoding import encoded_sources
from hf_rnn_seq2seq.model.search_options import end_tokens, generation_values
from hf_rnn_seq2seq.visualization.figure import INK, QUIET, SERIES, check_output, new_figure, save_figure
from hf_rnn_seq2seq.visualization.fonts import choose_fonts
from hf_rnn_seq2seq.visualization.labels import printable_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Node:
    """A prefix of a translation that was a beam."""

    token_ids: tuple[int, ...]
    piece: str  # the text its last token adds
    probability: float  # of its last token given the tokens before it
    log_probability: float  # of the whole prefix, natural logarithm
    rank: int | None = None  # among the finished hypotheses, 1 is best; None for any other prefix
    children: list["Node"] = field(default_factory=list)

    def walk(self) -> "list[Node]":
        """This node and all its descendants, parents first."""
        return [self, *(node for child in self.children for node in child.walk())]


class BeamRecorder(LogitsProcessor):
    """Records the start of each step of a beam search: the tokens of the beams, the log-probabilities of the next."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[list[int]], Tensor]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append((input_ids.tolist(), scores.detach().cpu()))
        return scores


@torch.no_grad()
def beam_tree(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, *, num_beams: int = 4, **generation: Any
) -> Node:
    """Runs a beam search on one sentence and returns its tree; the root is the empty translation.

    The `num_beams` finished hypotheses have a rank. Siblings are sorted, the most probable first.

    Raises:
        ArgumentError: the source has no text, or `num_beams` is below 2.
    """
    if num_beams < 2:
        raise ArgumentError(f"num_beams={num_beams}: a beam tree needs at least 2")
    (ids,) = encoded_sources(tokenizer, [source]).ids
    if not ids:
        raise ArgumentError("source: must contain text")
    recorder = BeamRecorder()
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        logits_processor=[recorder],
        return_dict_in_generate=True,
        **generation,
    )
    ends = generation_values(model.generation_config, generation.get("generation_config"), generation)["eos_token_id"]
    return _grow(recorder, output.sequences.tolist(), end_tokens(ends), tokenizer)


def _grow(
    recorder: BeamRecorder, finished: list[list[int]], ends: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> Node:
    prompt = len(recorder.steps[0][0][0])
    root = Node((), "", 1.0, 0.0)
    nodes = {(): root}
    next_log_probabilities: dict[tuple[int, ...], Tensor] = {}  # of the token after a prefix
    for rows, scores in recorder.steps:
        for row, score in zip(rows, scores, strict=True):
            prefix = tuple(row[prompt:])
            if prefix and prefix not in nodes:
                nodes[prefix] = _add_child(nodes[prefix[:-1]], prefix, next_log_probabilities)
            next_log_probabilities.setdefault(prefix, score)
    for rank, row in enumerate(finished, start=1):
        hypothesis = tuple(until_end(row[prompt:], ends))
        if hypothesis not in nodes:
            nodes[hypothesis] = _add_child(nodes[hypothesis[:-1]], hypothesis, next_log_probabilities)
        if nodes[hypothesis].rank is None:
            nodes[hypothesis].rank = rank
    for node in nodes.values():
        node.children.sort(key=lambda child: -child.log_probability)
        if node.token_ids:
            node.piece = target_pieces(tokenizer, node.token_ids)[-1]
    return root


def _add_child(parent: Node, prefix: tuple[int, ...], next_log_probabilities: dict[tuple[int, ...], Tensor]) -> Node:
    log_probability = float(next_log_probabilities[parent.token_ids][prefix[-1]])
    node = Node(prefix, "", min(1.0, math.exp(log_probability)), parent.log_probability + log_probability)
    parent.children.append(node)
    return node


def plot_beam_tree(root: Node, output: str | os.PathLike[str] | None = None, *, title: str = "") -> "Figure":
    """Draws a tree of `beam_tree`: words from left to right, finished hypotheses in color, discarded prefixes in gray.

    The width of a line shows the probability of the word at its end. Returns the Matplotlib figure.
    """
    check_output(output)
    places = _places(root)
    nodes = root.walk()
    colors = _colors(nodes)
    families = choose_fonts([*(node.piece for node in nodes), title, "…␣·"])
    text = {"fontfamily": families, "va": "center", "parse_math": False}
    depth = max(len(node.token_ids) for node in nodes)
    rows = 1 + max(row for _, row in places.values())
    figure = new_figure(figsize=(1.0 + 0.82 * (depth + 1), 0.6 + 0.27 * rows))
    ax = figure.subplots()
    for node in nodes:
        for child in node.children:
            (x, y), (end, row) = places[node.token_ids], places[child.token_ids]
            color, layer = colors.get(child.token_ids, ("#c3ccd5", 1))
            width = 0.7 + 3.3 * child.probability
            ax.plot([x, x + 0.28, end], [y, row, row], color=color, linewidth=width, zorder=layer)
    for node in nodes:
        x, y = places[node.token_ids]
        color = INK if node.token_ids in colors or node is root else QUIET
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
        label = printable_label(node.piece, 14) if node.token_ids else "start"
        ax.text(x, y, label, fontsize=8, color=color, ha="center", bbox=box, zorder=9, **text)
        if node.rank is not None:
            note = f"{node.rank}.  log-probability {node.log_probability:z.2f}"
            ax.text(x + 0.42, y, note, fontsize=8, color=colors[node.token_ids][0], ha="left", va="center", zorder=9)
    ax.set(xlim=(-0.4, depth + 2.2), ylim=(rows - 0.4, -0.6))
    ax.axis("off")
    if title:
        ax.set_title(
            printable_label(title, 200), loc="left", fontsize=9, color=QUIET, fontfamily=families, parse_math=False
        )
    return save_figure(figure, output)


def _places(root: Node) -> dict[tuple[int, ...], tuple[float, float]]:
    """(column, row) of each node: a leaf has its own row, a parent the row of its best child."""
    places: dict[tuple[int, ...], tuple[float, float]] = {}
    rows = 0

    def place(node: Node) -> float:
        nonlocal rows
        if not node.children:
            row = float(rows)
            rows += 1
        else:
            row = [place(child) for child in node.children][0]
        places[node.token_ids] = (float(len(node.token_ids)), row)
        return row

    place(root)
    return places


def _colors(nodes: Sequence[Node]) -> dict[tuple[int, ...], tuple[str, int]]:
    """Color and drawing order of each prefix of a finished hypothesis; the best hypothesis decides a shared prefix."""
    colors: dict[tuple[int, ...], tuple[str, int]] = {}
    for node in sorted((node for node in nodes if node.rank is not None), key=lambda node: node.rank or 0):
        for length in range(1, len(node.token_ids) + 1):
            shade = SERIES[min((node.rank or 1) - 1, 1)]
            colors.setdefault(node.token_ids[:length], (shade, 8 - min(node.rank or 1, 6)))
    return colors
