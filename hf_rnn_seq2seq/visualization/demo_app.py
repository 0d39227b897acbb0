"""The demo in a browser, made with Gradio: each model translates a sentence word by word and shows its attention.

Gradio is imported when the app is built. The page sends no analytics and loads no fonts or scripts from other hosts.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces
from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.evaluation.error_analysis import short_names
from hf_rnn_seq2seq.generation.attention import merge_words
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.generation.translate import Hypothesis, translate_n_best
from hf_rnn_seq2seq.run_directory import load_checkpoint, read_summary
from hf_rnn_seq2seq.visualization.labels import is_right_to_left
from hf_rnn_seq2seq.visualization.live_translation import stream_translation
from hf_rnn_seq2seq.visualization.pages import environment, read_template

if TYPE_CHECKING:
    import gradio

MAX_BEAMS = 10
MAX_SOURCE_TOKENS = 200


@dataclass(frozen=True)
class LoadedSystem:
    """A model and the name that the page shows."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_systems(names: Sequence[str], *, device: str | None = None, dtype: str | None = None) -> list[LoadedSystem]:
    """Loads checkpoints of directories or Hub repositories, with short names that differ.

    Raises:
        CheckpointError: one of them cannot be loaded, or is given twice.
    """
    cleaned = [str(name).rstrip("/") for name in names]
    if len(set(cleaned)) < len(cleaned):
        raise CheckpointError(f"{', '.join(cleaned)}: each model may be given once")
    return [
        LoadedSystem(label, *load_checkpoint(name, device=device, dtype=dtype, attention=True))
        for label, name in zip(short_names(cleaned), cleaned, strict=True)
    ]


def example_sentences(names: Sequence[str]) -> list[str]:
    """Up to 8 sources from the samples in the summaries of the runs, without duplicates."""
    sentences: list[str] = []
    for name in names:
        with suppress(CheckpointError):
            samples = read_summary(name).get("samples", [])
            sentences.extend(str(sample["source"]) for sample in samples if "source" in sample)
    return list(dict.fromkeys(sentences))[:8]


def translate_live(
    systems: Sequence[LoadedSystem], text: str, num_beams: int, temperature: float, n_best: int, words: bool
) -> Iterator[str]:
    """Yields the result as HTML, again after each token: all systems advance together, then come the n-best lists."""
    text = text.strip()
    if not text or not systems:
        yield f'<p class="facts">{"Choose a model." if text else "Type a sentence."}</p>'
        return
    special = {token for system in systems for token in system.tokenizer.all_special_tokens}
    template: Any = environment().get_template("demo.html").make_module({"special": special})
    panels = [_Panel(system, text, words, num_beams, temperature) for system in systems]
    while not all(panel.is_finished for panel in panels):
        for panel in panels:
            panel.advance()
        yield str(template.result(panels))
    for panel in panels:
        panel.find_n_best(num_beams, temperature, n_best)
    yield str(template.result(panels))


class _Panel:
    """The translation of one system as far as it has come; the template reads its attributes."""

    def __init__(self, system: LoadedSystem, text: str, words: bool, num_beams: int, temperature: float) -> None:
        self.system, self.text, self.words = system, text, words
        self.translation: Hypothesis | None = None
        self.n_best: list[Hypothesis] = []
        self.note = self.error = self.n_best_title = ""
        self.is_finished = False
        limit = min(MAX_SOURCE_TOKENS, system.tokenizer.model_max_length)
        encoded = encode_sources(system.tokenizer, [text], limit)
        if encoded.truncated:
            self.text = text[: _end_of(system.tokenizer, text, limit)]
            self.note = "the sentence was cut"
        if encoded.unknown:
            self.note = "every token of the sentence is unknown to the model"
        self.steps = stream_translation(
            system.model, system.tokenizer, self.text, num_beams=num_beams, temperature=temperature
        )

    def advance(self) -> None:
        """Takes the next step; an error ends this system only."""
        try:
            self.translation = next(self.steps)
        except StopIteration:
            self.is_finished = True
        except (ValueError, RuntimeError) as error:  # such as a source longer than location attention supports
            self.error, self.is_finished = str(error), True

    def find_n_best(self, num_beams: int, temperature: float, n_best: int) -> None:
        """Finds the n-best list: of a beam search, or sampled if the temperature is above 0."""
        if n_best < 2 or self.error:
            return
        options: dict[str, Any] = {"num_beams": max(num_beams, n_best), "do_sample": False}
        self.n_best_title = f"the best of {options['num_beams']} beams"
        if temperature > 0:
            options = {"do_sample": True, "temperature": temperature, "top_k": 0, "num_beams": 1}
            self.n_best_title = f"drawn at temperature {temperature:g}"
        try:
            (self.n_best,) = translate_n_best(
                self.system.model, self.system.tokenizer, [self.text], n_best=n_best, progress=False, **options
            )
        except (ValueError, RuntimeError) as error:
            self.error = str(error)

    def facts(self) -> list[str]:
        """What the page prints below the translation."""
        count = len(self.translation.token_ids)
        facts = [f"{count} {'token' if count == 1 else 'tokens'}"]
        facts += [f"log-probability {self.translation.log_probability:z.2f}", *([self.note] if self.note else [])]
        if self.translation.attention is None:
            facts.append("no attention: the source is read before the first word")
        return facts

    def attention(self) -> tuple[list[list[float]], Sequence[str], Sequence[str], str]:
        """The arguments of the template's `attention_table`: weights (target, source), labels, direction."""
        weights = self.translation.attention[0]
        source = source_pieces(self.system.tokenizer, self.text, len(self.translation.source_ids))
        target = target_pieces(self.system.tokenizer, self.translation.token_ids)
        if self.words:
            special = {*self.system.tokenizer.all_special_tokens}
            weights, source, target = merge_words(weights, source, target, special)
        return weights.tolist(), source, target, "rtl" if is_right_to_left(source) else "ltr"


def _end_of(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> int:
    """Where the last token ends that fits into `limit`."""
    offsets = tokenizer([text], return_offsets_mapping=True, verbose=False)["offset_mapping"][0]
    return max(end for _, end in offsets[: limit - 1])


def build_app(systems: Sequence[LoadedSystem], *, examples: Sequence[str] = (), title: str = "") -> "gradio.Blocks":
    """Builds the Gradio app; `launch` starts it.

    Raises:
        ArgumentError: no system is given.
    """
    if not systems:
        raise ArgumentError("systems: must contain at least one model")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    title = title or "Watch recurrent models translate"
    names = [system.name for system in systems]

    def run(
        text: str, chosen_names: list[str], num_beams: float, temperature: float, n_best: float, words: bool
    ) -> Iterator[str]:
        selected = [system for system in systems if system.name in (chosen_names or [])]
        yield from translate_live(selected, text or "", int(num_beams), float(temperature), int(n_best), bool(words))

    with gradio.Blocks(title=title, analytics_enabled=False) as app:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            text = gradio.Textbox(
                label="Sentence", lines=2, max_length=2000, elem_id="sentence", scale=4, min_width=280
            )
            button = gradio.Button("Translate", variant="primary", elem_id="translate", scale=1, min_width=120)
        chosen = gradio.CheckboxGroup(names, value=names[:3], label="Models", visible=len(names) > 1, elem_id="models")
        with gradio.Row():
            num_beams = gradio.Slider(1, MAX_BEAMS, 1, step=1, label="Beams", info="1 is greedy", elem_id="beams")
            temperature = gradio.Slider(
                0, 2, 0, step=0.1, label="Temperature", info="0: most probable; above: sampled", elem_id="temperature"
            )
            n_best = gradio.Slider(1, MAX_BEAMS, 1, step=1, label="Translations", info="n-best", elem_id="n_best")
        words = gradio.Checkbox(True, label="Attention between whole words", elem_id="words")
        result = gradio.HTML(elem_id="result")
        inputs = [text, chosen, num_beams, temperature, n_best, words]
        gradio.on([button.click, text.submit], run, inputs, result, api_name="translate", show_progress="hidden")
        if examples:
            gradio.Examples([[example] for example in examples], text, cache_examples=False)
    return app


def launch(
    app: "gradio.Blocks", *, server_name: str | None = "127.0.0.1", server_port: int | None = None, **options: Any
) -> Any:
    """Serves the app on loopback; `server_name=None` uses the environment variables of Gradio, as a Space needs."""
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
        css=read_template("demo.css"),
        footer_links=[],
        **options,
    )
