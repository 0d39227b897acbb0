"""Beam search made visible: every prefix that a beam held at some step, as a tree, drawn from left to right.

The prefixes are those of the model's own `generate()`: a logits processor that changes nothing notes them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessor

from hf_rnn_seq2seq.errors import EvaluationError
from hf_rnn_seq2seq.generation.attention import target_pieces
from hf_rnn_seq2seq.generation.translate import encoded_sources
from hf_rnn_seq2seq.visualization.figure import INK, QUIET, SERIES, check_output, new_figure, save_figure
from hf_rnn_seq2seq.visualization.fonts import choose_fonts, printable_labels, warn_about


@dataclass
class Node:
    """A prefix of a translation that a beam held."""

    token_ids: tuple[int, ...]
    piece: str  # the text its last token adds
    probability: float  # of its last token, after the prefix before it
    log_probability: float  # of the whole prefix, natural logarithm
    rank: int | None = None  # place among the finished hypotheses, 1 is best; None for what was given up or went on
    children: list["Node"] = field(default_factory=list)

    def walk(self) -> "list[Node]":
        """This node and all below it, parents first."""
        found = [self]
        for child in self.children:
            found.extend(child.walk())
        return found


class BeamRecorder(LogitsProcessor):
    """Notes what each step of a beam search starts from: the beams' tokens and the log-probabilities of the next."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[list[int]], Any]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append((input_ids.tolist(), scores.detach().cpu()))
        return scores


@torch.no_grad()
def beam_tree(model: Any, tokenizer: Any, source: str, *, num_beams: int = 4, **generation: Any) -> Node:
    """The tree of one sentence's beam search; its root is the empty translation.

    Finished hypotheses, all `num_beams` of them, carry their rank. Siblings stand with the better one first.

    Raises:
        EvaluationError: the source has no text, or `num_beams` is below 2.
    """
    if num_beams < 2:
        raise EvaluationError(f"num_beams is {num_beams}; a beam tree needs at least 2")
    (ids,) = encoded_sources(tokenizer, [source]).ids
    if not ids:
        raise EvaluationError("source: must hold text")
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
    return _grow(recorder, output.sequences.tolist(), model.generation_config.eos_token_id, tokenizer)


def _grow(recorder: BeamRecorder, finished: list[list[int]], eos: int | list[int] | None, tokenizer: Any) -> Node:
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    prompt = len(recorder.steps[0][0][0])
    root = Node((), "", 1.0, 0.0)
    nodes = {(): root}
    after: dict[tuple[int, ...], Any] = {}  # prefix -> log-probabilities of the next token
    for rows, scores in recorder.steps:
        for row, score in zip(rows, scores, strict=True):
            prefix = tuple(row[prompt:])
            if prefix and prefix not in nodes:
                nodes[prefix] = _child(nodes[prefix[:-1]], prefix, after)
            after.setdefault(prefix, score)
    for rank, row in enumerate(finished, start=1):
        ids = row[prompt:]
        stop = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        whole = tuple(ids[:stop])
        if whole not in nodes:
            nodes[whole] = _child(nodes[whole[:-1]], whole, after)
        if nodes[whole].rank is None:
            nodes[whole].rank = rank
    for node in nodes.values():
        node.children.sort(key=lambda child: -child.log_probability)
        if node.token_ids:
            node.piece = target_pieces(tokenizer, node.token_ids)[-1]
    return root


def _child(parent: Node, prefix: tuple[int, ...], after: dict[tuple[int, ...], Any]) -> Node:
    gained = float(after[parent.token_ids][prefix[-1]])
    node = Node(prefix, "", min(1.0, float(torch.tensor(gained).exp())), parent.log_probability + gained)
    parent.children.append(node)
    return node


def plot_beam_tree(root: Node, output: str | os.PathLike[str] | None = None, *, title: str = "") -> Any:
    """Draw a tree of `beam_tree`: words from left to right, finished hypotheses in colour, the best one thick.

    The width of a line is the probability of the word it leads to; what a beam gave up is grey.

    Returns the matplotlib figure.
    """
    if output is not None:
        check_output(output)
    places = _places(root)
    nodes = root.walk()
    colours = _colours(nodes)
    families, missing = choose_fonts([*(node.piece for node in nodes), title, "…␣·"])
    text = {"fontfamily": families, "va": "center", "parse_math": False}
    depth = max(len(node.token_ids) for node in nodes)
    rows = 1 + max(row for _, row in places.values())
    figure = new_figure(figsize=(1.0 + 0.82 * (depth + 1), 0.6 + 0.27 * rows))
    ax = figure.subplots()
    for node in nodes:
        for child in node.children:
            (x, y), (end, row) = places[node.token_ids], places[child.token_ids]
            colour, layer = colours.get(child.token_ids, ("#c3ccd5", 1))
            width = 0.7 + 3.3 * child.probability
            ax.plot([x, x + 0.28, end], [y, row, row], color=colour, linewidth=width, zorder=layer)
    labels = dict(zip((node.token_ids for node in nodes), _labels(nodes, missing), strict=True))
    for node in nodes:
        x, y = places[node.token_ids]
        colour = INK if node.token_ids in colours or node is root else QUIET
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
        ax.text(x, y, labels[node.token_ids], fontsize=8, color=colour, ha="center", bbox=box, zorder=9, **text)
        if node.rank is not None:
            note = f"{node.rank}.  log-probability {node.log_probability:z.2f}"
            ax.text(x + 0.42, y, note, fontsize=8, color=colours[node.token_ids][0], ha="left", va="center", zorder=9)
    ax.set(xlim=(-0.4, depth + 2.2), ylim=(rows - 0.4, -0.6))
    ax.axis("off")
    if title:
        shown = printable_labels([title], missing, 200)[0]
        ax.set_title(shown, loc="left", fontsize=9, color=QUIET, fontfamily=families, parse_math=False)
    warn_about(missing)
    if output is not None:
        save_figure(figure, output)
    return figure


def _places(root: Node) -> dict[tuple[int, ...], tuple[float, float]]:
    """(column, row) of every node: leaves in rows of their own, a parent in the row of its best child."""
    places: dict[tuple[int, ...], tuple[float, float]] = {}
    rows = 0

    def put(node: Node) -> float:
        nonlocal rows
        if not node.children:
            row = float(rows)
            rows += 1
        else:
            row = [put(child) for child in node.children][0]
        places[node.token_ids] = (float(len(node.token_ids)), row)
        return row

    put(root)
    return places


def _colours(nodes: Sequence[Node]) -> dict[tuple[int, ...], tuple[str, int]]:
    """Colour and drawing order of every prefix of a finished hypothesis; where two share a prefix, the better wins."""
    colours: dict[tuple[int, ...], tuple[str, int]] = {}
    for node in sorted((node for node in nodes if node.rank is not None), key=lambda node: node.rank or 0):
        for length in range(1, len(node.token_ids) + 1):
            shade = SERIES[min((node.rank or 1) - 1, 1)]
            colours.setdefault(node.token_ids[:length], (shade, 8 - min(node.rank or 1, 6)))
    return colours


def _labels(nodes: Sequence[Node], missing: set[str]) -> list[str]:
    return ["start" if not node.token_ids else printable_labels([node.piece], missing, 14)[0] for node in nodes]
