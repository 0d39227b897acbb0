"""Networks that write by hand (Graves 2013, sections 4 and 5): the density of a pen's next point, and `write`."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_rnn_handwriting import RnnHandwritingConfig
from .decoder import RnnDecoder
from .decoder_state import NO_SOURCE, RnnSeq2SeqCache
from .dropout import drop, without_noise
from .loss import IGNORED_LABEL
from .mixture_density import Mixture, MixtureDensity
from .pen_points import START, Place, Stroke, height, to_points, to_strokes
from .pretrained import RnnSeq2SeqPreTrainedModel

# Points that a character may take before a writing is given up; those of the training corpora take about ten.
POINTS_OF_A_CHARACTER = 60
POINTS_WITHOUT_TEXT = 700  # as in figure 11


@dataclass
class RnnHandwritingOutput(ModelOutput):
    """What the network says after each point.

    Args:
        loss: (), nats per point, with labels.
        mixture: the density of the next point, after each point.
        cache: the state after the last point, with `use_cache`.
        window: (batch, points, characters + 1), phi(t, u) of the text and of the place behind it; None without text.
    """

    loss: Tensor | None = None
    mixture: Mixture | None = None
    cache: RnnSeq2SeqCache | None = None
    window: Tensor | None = None


@dataclass
class Handwriting:
    """A text that was written.

    Args:
        text: what was to be written; None without text.
        strokes: places (x, y), y up; in heights of a word, with a `prime` in its unit, from its last place on.
        finished: the window has passed the last character, and the stroke has ended; without text always True. False: the
            limit of points was met.
        points: (points, 3), what was drawn, in the units of the network; the first is the starting point.
        mixture: the density of the point after each, as it was drawn from: with the bias.
        window: (points, characters + 1), phi(t, u) at each point; None without text. With a `prime` its text comes first.
        unit: heights of a word to units of `strokes`.
        start: where the first point is.
    """

    text: str | None
    strokes: list[list[Place]]
    finished: bool
    points: Tensor
    mixture: Mixture
    window: Tensor | None
    unit: float = 1.0
    start: Place = (0.0, 0.0)


class _Pen(NamedTuple):
    """A batch of writings that has read what is given."""

    cache: RnnSeq2SeqCache
    output: RnnHandwritingOutput
    unit: float
    start: Place
    primed: bool


class RnnForHandwriting(RnnSeq2SeqPreTrainedModel):
    """The decoder of the family over points of a pen; with an alphabet it reads a text through a window.

    `AutoModel` loads it too: there is no auto class for models whose outputs are densities.
    """

    config_class = RnnHandwritingConfig
    base_model_prefix = ""
    main_input_name = "points"
    supports_gradient_checkpointing = False  # layers of an encoder have it
    _no_split_modules = ["RnnDecoder"]

    def __init__(self, config: RnnHandwritingConfig) -> None:
        super().__init__(config)
        self.decoder = RnnDecoder(config)
        self.density = MixtureDensity(config.readout_width, config.mixture_components)
        self.post_init()

    def save_pretrained(self, save_directory: str, *args: object, **kwargs: object) -> None:
        """As in transformers."""
        PreTrainedModel.save_pretrained(self, save_directory, *args, **kwargs)

    def get_decoder(self) -> RnnDecoder:
        return self.decoder

    # Opaque to torch.compile, which would unroll the time loops: minutes of compilation, and no gain.
    @torch.compiler.disable
    def forward(
        self,
        points: Tensor | None = None,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        cache: RnnSeq2SeqCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> RnnHandwritingOutput | tuple:
        """Reads points, and says where the next one will be.

        Args:
            points: (batch, points, 3): offsets across and up, divided by `offset_deviation`, and 1 where a stroke ends. None:
                the labels moved right by one, behind the starting point.
            input_ids: (batch, characters), the text, as `characters` gives it; 0 is behind the text. Only of a network that
                reads text, and only where there is no cache.
            labels: (batch, points, 3), the points after each; a row whose last number is -100 is ignored.
            cache: the state after the points before, and the text.
            use_cache: return the state after the last point.
            num_items_in_batch: the loss is the sum over the labels divided by this; None: by their number in the batch.

        Raises:
            ValueError: inputs are missing or of other shapes, or a text is given to a network that reads none.
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        return_dict = config.return_dict if return_dict is None else return_dict
        if points is None:
            if labels is None:
                raise ValueError("give points, or labels")
            points = _shift_right(labels)
        if points.dim() != 3 or points.shape[2] != 3:
            raise ValueError(f"points of shape {tuple(points.shape)}: must be (batch, points, 3)")
        points = points.to(self.dtype)
        if cache is None:
            cache = self._start(points, input_ids)
        elif input_ids is not None:
            raise ValueError("input_ids: the cache holds the text; leave them out")
        cache.check_rows("points", points)
        trace = self.decoder(points, cache.state, cache.memory)
        cache.advance(trace.state, points.shape[1])
        mixture = self.density(drop(trace.readout, config.dropout, self.training, config.variational_dropout))
        output = RnnHandwritingOutput(
            loss=None if labels is None else self._loss(mixture, labels, num_items_in_batch),
            mixture=mixture,
            cache=cache if use_cache else None,
            window=None if trace.weights is None else trace.weights[:, 0],
        )
        return output if return_dict else output.to_tuple()

    def _start(self, like: Tensor, input_ids: Tensor | None) -> RnnSeq2SeqCache:
        """The state before the first point of the rows of `like`, which begin the texts `input_ids`."""
        if self.config.reads_text != (input_ids is not None):
            wanted = "give input_ids, the text" if self.config.reads_text else "reads no text; leave out input_ids"
            raise ValueError(f"window_components={self.config.window_components}: {wanted}")
        memory = NO_SOURCE
        if input_ids is not None:
            # The place behind the text is read as nothing: its weight says when the writing ends (section 5.3).
            ids = F.pad(input_ids, (0, 1))
            vectors = F.one_hot(ids, len(self.config.alphabet) + 1)[..., 1:].to(like.dtype)
            real = torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids[:, :-1] != 0], 1)
            memory = self.decoder.prepare_memory(vectors, real, None)
        cache = RnnSeq2SeqCache()
        cache.start(self.decoder.zero_state(like, memory), memory)
        return cache

    @staticmethod
    def _loss(mixture: Mixture, labels: Tensor, items: Tensor | int | None) -> Tensor:
        """The sequence loss (equations 26 and 54), per point."""
        real = labels[..., 2] != IGNORED_LABEL
        nats = -mixture.log_density(labels).masked_fill(~real, 0.0).sum()
        return nats / (real.sum().clamp(min=1) if items is None else items)

    # ---------------------------------------------------------------- text

    def characters(self, texts: Sequence[str]) -> Tensor:
        """The numbers of the characters of some texts, (batch, characters), from 1 on; 0 behind the end.

        Raises:
            ValueError: a character is not in the alphabet, or a text is empty.
        """
        numbers = {letter: number for number, letter in enumerate(self.config.alphabet, start=1)}
        rows = []
        for text in texts:
            text = unicodedata.normalize("NFC", text)
            if unknown := [letter for letter in text if letter not in numbers]:
                raise ValueError(
                    f"{text!r}: the character {unknown[0]!r} is not in the alphabet of this model: {self.config.alphabet}"
                )
            if not text:
                raise ValueError("text='': there is nothing to write")
            rows.append(torch.tensor([numbers[letter] for letter in text]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    # ---------------------------------------------------------------- writing

    @torch.no_grad()
    def write(
        self,
        text: str | Sequence[str] | None = None,
        *,
        bias: float = 0.0,
        prime: tuple[Iterable[Stroke], str] | Iterable[Stroke] | None = None,
        generator: torch.Generator | None = None,
        max_points: int | None = None,
    ) -> Handwriting | list[Handwriting]:
        """Writes a text (sections 5.3 to 5.5), or without text whatever comes (section 4.3).

        Args:
            text: one or several; None of a network that reads no text. Unicode's composed form (NFC) is read.
            bias: 0 or more; larger writes more regularly (equations 61 and 62).
            prime: strokes, and the text that they write; the network goes on in their hand (section 5.5). The text of the
                prime is put in front of each text as it is, without a space. Of a network that reads no text: strokes.
            generator: of the model's device; None: torch's own.
            max_points: of each writing; None: 60 for each character, 700 without text.

        Returns:
            one `Handwriting` for one text (or none), a list for several.

        Raises:
            ValueError: an option is out of range, a character is unknown, or a text or its absence does not fit the network.
        """
        several = text is not None and not isinstance(text, str)
        texts: Sequence[str | None] = text if several else [text]
        self._check_writing(texts, bias, max_points)
        if max_points is None:
            longest = max((len(one) for one in texts if one is not None), default=0)
            max_points = POINTS_OF_A_CHARACTER * longest or POINTS_WITHOUT_TEXT
        with without_noise(self):
            pen = self._begin(texts, prime)
            written = self._write(pen, texts, bias, generator, max_points)
        return written if several else written[0]

    def _check_writing(self, texts: Sequence[str | None], bias: float, max_points: int | None) -> None:
        if not 0 <= bias < float("inf"):
            raise ValueError(f"bias={bias!r}: must be 0 or more")
        if max_points is not None and max_points < 1:
            raise ValueError(f"max_points={max_points!r}: must be 1 or more")
        if not texts:
            raise ValueError("text=[]: there is nothing to write")
        if self.config.reads_text and None in texts:
            raise ValueError("text=None: this network writes a given text")
        if not self.config.reads_text and texts != [None]:
            raise ValueError(f"text={texts[0]!r}: this network reads no text (window_components=0); leave it out")

    def _begin(
        self, texts: Sequence[str | None], prime: tuple[Iterable[Stroke], str] | Iterable[Stroke] | None
    ) -> _Pen:
        """Reads the prime, or the starting point."""
        strokes, before = prime if prime is not None and self.config.reads_text else (prime, "")
        points, unit, start = [START], 1.0, (0.0, 0.0)
        if strokes is not None:
            strokes = [list(stroke) for stroke in strokes]
            if not strokes or not all(strokes):
                raise ValueError("prime: has no stroke, or an empty one")
            if self.config.reads_text and not before:
                raise ValueError("prime: give its strokes and the text that they write")
            unit = height(strokes)
            points, start = to_points(strokes, unit, self.config.point_tolerance), tuple(strokes[-1][-1])
        inputs = torch.tensor(points, dtype=torch.float64)
        inputs[:, :2] /= self._deviation()
        inputs = inputs.to(self.device, self.dtype)
        ids = None
        if self.config.reads_text:
            ids = self.characters([before + one for one in texts]).to(self.device)
        output = self(inputs.expand(len(texts), -1, -1), ids, use_cache=True, return_dict=True)
        return _Pen(output.cache, output, unit, start, primed=strokes is not None)

    def _write(
        self,
        pen: _Pen,
        texts: Sequence[str | None],
        bias: float,
        generator: torch.Generator | None,
        max_points: int,
    ) -> list[Handwriting]:
        output = pen.output
        rows = len(texts)
        point = output.mixture.mean.new_tensor(START).expand(rows, 3)
        drawn, mixtures, windows = [point], [], []
        lengths = torch.full((rows,), max_points + 1, device=self.device)
        finished = torch.full((rows,), not self.config.reads_text, device=self.device)
        for number in range(1, max_points + 1):
            mixture = Mixture(*(tensor[:, -1] for tensor in output.mixture)).biased(bias)
            mixtures.append(mixture)
            if output.window is not None:
                windows.append(output.window[:, -1])
                # The first point of a writing never ends it: a prime has just been finished.
                ends = self._ended(output, pen.cache, point) & ~finished & (number > 1)
                lengths[ends], finished = number, finished | ends
                if finished.all():
                    break
            point = mixture.sample(generator)
            drawn.append(point)
            output = self(point.unsqueeze(1), cache=pen.cache, use_cache=True, return_dict=True)
        # What is known after the last point, which of a writing that met its limit was not looked at.
        if len(mixtures) < len(drawn):
            mixtures.append(Mixture(*(tensor[:, -1] for tensor in output.mixture)).biased(bias))
            if output.window is not None:
                windows.append(output.window[:, -1])
                finished |= self._ended(output, pen.cache, point)
        points = torch.stack(drawn, 1)
        mixture = Mixture(*(torch.stack(tensors, 1) for tensors in zip(*mixtures, strict=True)))
        window = torch.stack(windows, 1) if windows else None
        return [
            self._handwriting(pen, text, row, int(lengths[row]), bool(finished[row]), points, mixture, window)
            for row, text in enumerate(texts)
        ]

    @staticmethod
    def _ended(output: RnnHandwritingOutput, cache: RnnSeq2SeqCache, point: Tensor) -> Tensor:
        """Whether the window has passed the text, and `point` (batch, 3), the last one, ends a stroke: (batch,).

        Passed: phi(t, U + 1) > phi(t, u) of every character (section 5.3), or every center has: far from all places the
        weights are 0. The paper stops there; but the window runs ahead of the pen, and would cut off the last letter.
        """
        window, real = output.window[:, -1], cache.memory.mask
        behind = real.sum(1, keepdim=True) - 1
        text = window.scatter(1, behind, -1.0)
        farthest = window.gather(1, behind) > text.amax(1, keepdim=True)
        passed = farthest.squeeze(1) | (cache.state.attention > behind + 1).all(1)
        return passed & (point[:, 2] > 0.5)

    def _handwriting(
        self,
        pen: _Pen,
        text: str | None,
        row: int,
        length: int,
        finished: bool,
        points: Tensor,
        mixture: Mixture,
        window: Tensor | None,
    ) -> Handwriting:
        """The writing of one row of the batch, of which `length` points belong to it."""
        own = points[row, :length]
        scaled = own.cpu().double() * torch.cat([self._deviation(), self._deviation().new_ones(1)])
        # The last place of a prime belongs to the prime; the starting point begins the first stroke.
        places = scaled[int(pen.primed) :].tolist()
        return Handwriting(
            text=text,
            strokes=to_strokes(places, pen.unit, pen.start),
            finished=finished,
            points=own,
            mixture=Mixture(*(tensor[row, :length] for tensor in mixture)),
            window=None if window is None else window[row, :length, : int(pen.cache.memory.mask[row].sum())],
            unit=pen.unit,
            start=pen.start,
        )

    def _deviation(self) -> Tensor:
        # On the CPU: MPS has no float64.
        return torch.tensor(self.config.offset_deviation, dtype=torch.float64)


def _shift_right(labels: Tensor) -> Tensor:
    """Labels (batch, points, 3) moved right by one, behind the starting point; ignored ones become it too."""
    start = labels.new_tensor(START)
    points = torch.cat([start.expand(labels.shape[0], 1, 3), labels[:, :-1]], 1)
    return torch.where(points[..., 2:] == IGNORED_LABEL, start, points)
