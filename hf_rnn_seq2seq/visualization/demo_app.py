"""The demo in a browser, made with Gradio: type a sentence, watch each model translate it and look at its source.

Gradio loads when the app is built, not with this module. Nothing is sent anywhere: no analytics, no fonts or scripts of
other hosts.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import torch

from hf_rnn_seq2seq.errors import CheckpointError, EvaluationError
from hf_rnn_seq2seq.evaluation.error_analysis import short_names
from hf_rnn_seq2seq.generation.attention import SPECIAL, merge_words, source_pieces, target_pieces
from hf_rnn_seq2seq.generation.translate import encode_sources, translate_n_best
from hf_rnn_seq2seq.run_directory import load_checkpoint, read_summary
from hf_rnn_seq2seq.visualization.fonts import is_right_to_left
from hf_rnn_seq2seq.visualization.live_translation import Step, stream_translation

MOST_BEAMS = 10
LONGEST_SOURCE = 200  # tokens; what is longer is cut and the page says so


@dataclass(frozen=True)
class LoadedSystem:
    """A model under the name that the page shows."""

    name: str
    model: Any
    tokenizer: Any


def load_systems(names: Sequence[str], *, device: str | None = None, dtype: str | None = None) -> list[LoadedSystem]:
    """Checkpoints of directories or Hub repositories, under names that tell them apart.

    Raises:
        CheckpointError: one of them does not load, or is named twice.
    """
    cleaned = [str(name).rstrip("/") for name in names]
    if len(set(cleaned)) < len(cleaned):
        raise CheckpointError(f"{', '.join(cleaned)}: each model is named once")
    return [
        LoadedSystem(label, *load_checkpoint(name, device=device, dtype=dtype, attention=True))
        for label, name in zip(short_names(cleaned), cleaned, strict=True)
    ]


def example_sentences(names: Sequence[str]) -> list[str]:
    """Sources of the samples that the runs' summaries keep, without doubles."""
    found: list[str] = []
    for name in names:
        with suppress(CheckpointError):
            samples = read_summary(name).get("samples", [])
            found.extend(str(sample["source"]) for sample in samples if "source" in sample)
    return list(dict.fromkeys(found))[:8]


def translate_live(
    systems: Sequence[LoadedSystem], text: str, num_beams: int, temperature: float, n_best: int, words: bool
) -> Iterator[str]:
    """The page's result as HTML, again after every step: all systems go on side by side, then come the n-best."""
    text = text.strip()
    if not text or not systems:
        yield f'<p class="facts">{"Choose a model." if text else "Type a sentence."}</p>'
        return
    panels = {system.name: _Panel(system, text, words) for system in systems}
    running: dict[str, Iterator[Step]] = {
        system.name: stream_translation(
            system.model, system.tokenizer, panels[system.name].text, num_beams=num_beams, temperature=temperature
        )
        for system in systems
    }
    while running:
        for name in list(running):
            panels[name].advance(running, name)
        yield _joined(panels.values())
    for panel in panels.values():
        panel.find_n_best(num_beams, temperature, n_best)
    yield _joined(panels.values())


def _joined(panels: Any) -> str:
    return f'<div class="systems">{"".join(panel.html() for panel in panels)}</div>'


class _Panel:
    """What one system has said so far."""

    def __init__(self, system: LoadedSystem, text: str, words: bool) -> None:
        self.system, self.text, self.words = system, text, words
        self.step: Step | None = None
        self.others: list[Any] = []
        self.note = self.error = self.how = ""
        limit = min(LONGEST_SOURCE, system.tokenizer.model_max_length)
        encoded = encode_sources(system.tokenizer, [text], limit)
        if encoded.truncated:
            self.text = text[: _end_of(system.tokenizer, text, limit)]
            self.note = "the sentence was cut"
        if encoded.unknown:
            self.note = "the model knows nothing of it: every token is unknown"

    def advance(self, running: dict[str, Iterator[Step]], name: str) -> None:
        """One step on; a system that has finished or failed leaves."""
        try:
            self.step = next(running[name])
        except StopIteration:
            del running[name]
        except (ValueError, RuntimeError) as error:  # such as a source longer than a location attention reaches
            self.error = str(error)
            del running[name]

    def find_n_best(self, num_beams: int, temperature: float, n_best: int) -> None:
        """Other translations: of the beams, or drawn at the temperature."""
        if n_best < 2 or self.error:
            return
        options: dict[str, Any] = {"num_beams": max(num_beams, n_best), "do_sample": False}
        self.how = f"the best of {options['num_beams']} beams"
        if temperature > 0:
            self.how = f"drawn at temperature {temperature:g}"
            options = {"do_sample": True, "temperature": temperature, "top_k": 0, "num_beams": 1}
        try:
            (self.others,) = translate_n_best(
                self.system.model, self.system.tokenizer, [self.text], n_best=n_best, progress=False, **options
            )
        except (ValueError, RuntimeError) as error:
            self.error = str(error)

    def html(self) -> str:
        """The panel; whatever comes from a model or a reader is escaped."""
        parts = [f"<h3>{escape(self.system.name)}</h3>"]
        if self.step is not None:
            going = "" if self.step.finished else " going"
            parts.append(f'<p class="said{going}" dir="auto" lang="">{escape(self.step.text)}</p>')
            count = len(self.step.token_ids)
            facts = [f"{count} {'token' if count == 1 else 'tokens'}"]
            facts += [f"log-probability {self.step.log_probability:z.2f}", *([self.note] if self.note else [])]
            if self.step.attention is None:
                facts.append("no attention: the source is read before the first word")
            parts.append(f'<p class="facts">{escape(", ".join(facts))}</p>')
            if self.step.attention is not None:
                parts.append(self._map())
        if self.others:
            rows = "".join(
                f"<li><bdi>{escape(found.text)}</bdi> <span>{found.log_probability:z.2f}</span></li>"
                for found in self.others
            )
            parts.append(f'<p class="facts list">{self.how}, with log-probabilities</p><ol>{rows}</ol>')
        if self.error:
            parts.append(f'<p class="error">{escape(self.error)}</p>')
        return f"<section>{''.join(parts)}</section>"

    def _map(self) -> str:
        step, tokenizer = self.step, self.system.tokenizer
        weights = step.attention
        source = source_pieces(tokenizer, self.text, len(step.source_ids))
        target = target_pieces(tokenizer, step.token_ids)
        if self.words:
            weights, source, target = merge_words(weights, source, target)
        return attention_table(weights, source, target)


def _end_of(tokenizer: Any, text: str, limit: int) -> int:
    """Where in the text the last token stands that is read."""
    offsets = tokenizer([text], return_offsets_mapping=True, verbose=False)["offset_mapping"][0]
    return max(end for _, end in offsets[: limit - 1])


def attention_table(weights: torch.Tensor, source: Sequence[str], target: Sequence[str]) -> str:
    """Attention (target, source) as an HTML table; shares of 5 % and more stand in their cells."""
    name = lambda piece: f"<small>{escape(piece)}</small>" if piece in SPECIAL else escape(piece.strip() or "␣")  # noqa: E731
    head = "".join(f'<th scope="col">{name(piece)}</th>' for piece in source)
    body = []
    for piece, row in zip(target, weights.tolist(), strict=True):
        cells = "".join(
            f'<td{" class=strong" if share > 0.55 else ""} style="--weight:{min(share, 1.0):.3f}">'
            f"{round(share * 100) if share >= 0.05 else ''}</td>"
            for share in row
        )
        body.append(f'<tr><th scope="row">{name(piece)}</th>{cells}</tr>')
    direction = "rtl" if is_right_to_left(source) else "ltr"
    table = f'<table class="map" dir="{direction}"><thead><tr><td></td>{head}</tr></thead>'
    return f'<div class="wide" tabindex="0">{table}<tbody>{"".join(body)}</tbody></table></div>'


def build_app(systems: Sequence[LoadedSystem], *, examples: Sequence[str] = (), title: str = "") -> Any:
    """The Gradio app, not yet started (see `launch`).

    Raises:
        EvaluationError: no system is given.
    """
    if not systems:
        raise EvaluationError("no model was named")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    title = title or "Watch recurrent models translate"
    names = [system.name for system in systems]

    def run(text: str, chosen: Any, num_beams: float, temperature: float, n_best: float, words: bool) -> Iterator[str]:
        wanted = [system for system in systems if system.name in (chosen or [])]
        yield from translate_live(wanted, text or "", int(num_beams), float(temperature), int(n_best), bool(words))

    with gradio.Blocks(title=title, analytics_enabled=False) as app:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            text = gradio.Textbox(
                label="Sentence", lines=2, max_length=2000, elem_id="sentence", scale=4, min_width=280
            )
            button = gradio.Button("Translate", variant="primary", elem_id="translate", scale=1, min_width=120)
        chosen = gradio.CheckboxGroup(names, value=names[:3], label="Models", visible=len(names) > 1, elem_id="models")
        with gradio.Row():
            num_beams = gradio.Slider(1, MOST_BEAMS, 1, step=1, label="Beams", info="1 is greedy", elem_id="beams")
            temperature = gradio.Slider(
                0, 2, 0, step=0.1, label="Temperature", info="0 searches; above, words are drawn", elem_id="temperature"
            )
            n_best = gradio.Slider(1, MOST_BEAMS, 1, step=1, label="Translations", info="n-best", elem_id="n_best")
        words = gradio.Checkbox(True, label="Attention between whole words", elem_id="words")
        result = gradio.HTML(elem_id="result")
        inputs = [text, chosen, num_beams, temperature, n_best, words]
        gradio.on([button.click, text.submit], run, inputs, result, api_name="translate", show_progress="hidden")
        if examples:
            gradio.Examples([[example] for example in examples], text, cache_examples=False)
    return app


def launch(app: Any, *, server_name: str | None = "127.0.0.1", server_port: int | None = None, **options: Any) -> Any:
    """Serves the app: on loopback by default; `server_name` None takes what the environment says, as a Space needs."""
    import gradio

    theme = gradio.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(block_info_text_color="*neutral_600")
    return app.launch(
        server_name=server_name,
        server_port=server_port,
        share=False,
        ssr_mode=False,
        theme=theme,
        css=(resources.files("hf_rnn_seq2seq.visualization") / "templates" / "demo.css").read_text(encoding="utf-8"),
        footer_links=[],
        **options,
    )
