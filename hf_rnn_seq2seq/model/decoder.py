"""The recurrent decoder: `step` is the equation of one target position, `forward` is `step` over time.

Reading order: `Readout` in decoder_parts.py, then `RnnDecoder.step`, then `RnnDecoder.forward`. The decoder takes encoder
states, a mask and a starting state, and knows nothing of who made them.

Layers are split in two. The attended layers stand at or below the layer that asks, so position t needs what was read
at t-1 or t: they are in the time loop. The upper layers only read what is below them: they run over the whole target
at once. With `attention_layer="bottom"` (GNMT) one layer is in the loop; with `after_cell` attention without input
feeding, and without attention, none is.
"""

import torch
from torch import Tensor, nn

from .attention import build_attention
from .cache import DecoderState, Memory
from .configuration_rnn_seq2seq import ConfigError, RnnSeq2SeqConfig
from .context_gate import ContextGate, gates_cell
from .copying import CopyGate, missing_source
from .decoder_parts import Attended, DecoderTrace, Loop, Readout, Step, hold
from .scan_decoder import attended_scan, scan_refusal
from .departures import departure, override
from .matmul import linear
from .recurrence import RecurrentLayer, State
from .dropout import drop, drop_words, dropout_mask

# Methods of a layer that `RnnDecoder.step` calls itself; what else stands on a layer asks for calling the layer.
_CALLED_OF_A_LAYER = ("step_weights", "first_cell", "transit", "zone_out", "recurrent_mask", "zoneout_masks")
_CALLED_OF_A_LAYER += ("zero_state", "calls_kernel")

# What computes one position, and is left out where all positions are computed together.
_ONE_POSITION = ("step", "_attend", "_attended_loop")


class RnnDecoder(nn.Module):
    """A stack of recurrent layers that reads a source by its first state, a fixed vector, or attention."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.attention = build_attention(config) if config.context == "attention" else None
        self.before_cell = config.attention_order == "before_cell"
        self.between_cells = config.attends_between_cells
        self.attended = 0
        if self.attention is not None:
            self.attended = 1 if config.attention_layer == "bottom" else config.decoder_layers
        # The attentional vector can be fed back only where the loop computes it; elsewhere the context is.
        self.feeds_readout = (
            config.input_feeding and config.readout == "tanh" and self.attended == config.decoder_layers
        )
        self.feed_size = 0
        if config.input_feeding:
            self.feed_size = config.readout_size if self.feeds_readout else config.context_width
        self.layers = nn.ModuleList(self._build_layer(number) for number in range(config.decoder_layers))
        self.context_gate = ContextGate(config, config.hidden_size) if gates_cell(config) else None
        self.readout = Readout(config)
        self.copy_gate = CopyGate(config) if config.copy_mechanism else None

    def _build_layer(self, number: int) -> RecurrentLayer:
        config = self.config
        below = config.hidden_size if number else config.embedding_size
        return RecurrentLayer(
            cell_type=config.cell_type,
            input_size=below + self.extra_size(number),
            hidden_size=config.hidden_size,
            gru_reset=config.gru_reset,
            layer_norm=config.layer_norm,
            transition_depth=config.decoder_upper_transition_depth if number else config.decoder_transition_depth,
            recurrent_dropout=config.recurrent_dropout,
            weight_drop=config.weight_drop,
            zoneout=config.zoneout_rates,
            transition_input_size=config.context_width if self.between_cells and number == 0 else 0,
        )

    def extra_size(self, number: int) -> int:
        """Width of what layer `number` (from 0) reads beside the layer below: the context, or the fed vector."""
        config = self.config
        if config.context == "every_step":
            return config.context_width if number == 0 or config.context_layers == "all" else 0
        if self.attention is None:
            return 0
        if number == 0:
            if self.between_cells:
                return 0
            return config.context_width if self.before_cell else self.feed_size
        return config.context_width if config.context_layers == "all" else 0

    @property
    def needs_loop(self) -> bool:
        """Whether one position must wait for what the position before it read, or has an equation of its own."""
        if self.attention is None:
            return False
        if self.before_cell or self.config.input_feeding or self.attention.carries:
            return True
        return override(self, RnnDecoder, _ONE_POSITION) is not None

    @property
    def recurrence_path(self) -> str:
        """How a pass over several target positions runs: `at once`, `scan`, or `loop` with the reason."""
        if not self.needs_loop:
            return "at once"
        if self.config.decoder_recurrence == "loop":
            return "loop: decoder_recurrence='loop'"
        own = override(self, RnnDecoder, _ONE_POSITION)
        reason = scan_refusal(self) if own is None else f"{own}() of {type(self).__name__}"
        return f"loop: {reason}" if reason else "scan"

    def _scans(self) -> bool:
        path, asked = self.recurrence_path, self.config.decoder_recurrence
        if path != "scan" and asked == "scan":
            raise ConfigError(f"decoder_recurrence={asked!r}: the scan does not cover this model ({path})")
        return path == "scan"

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def read_source(
        self, encoder_states: Tensor, source_mask: Tensor, summary: Tensor | None, source_ids: Tensor | None = None
    ) -> Memory:
        """Projects a source once per sentence: encoder states (batch, source, states) -> `Memory`.

        Raises:
            ValueError: the model copies, and `source_ids` (batch, source) are missing or of another shape.
        """
        if self.attention is None:
            return Memory(None, None, None, summary)
        if self.copy_gate is None:
            source_ids = None
        elif source_ids is None or source_ids.shape != source_mask.shape:
            raise ValueError(missing_source(source_ids, source_mask))
        keys = self.attention.project_keys(encoder_states)
        return Memory(keys, self.attention.project_values(encoder_states), source_mask, summary, source_ids)

    def start_state(self, layers: tuple[State, ...], memory: Memory) -> DecoderState:
        """The state before the first position, from each layer's starting state and the source."""
        like = layers[0][0]
        feed = like.new_zeros(like.shape[0], self.feed_size) if self.feed_size else None
        carried = None if self.attention is None else self.attention.start(memory.keys, memory.mask)
        return DecoderState(layers, feed, torch.zeros(like.shape[0], dtype=torch.long, device=like.device), carried)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word vectors (batch, target, embedding) with the dropout of training."""
        config = self.config
        embedded = self.embed_tokens(input_ids)
        if config.embedding_activation == "relu":
            embedded = torch.relu(embedded)
        words = input_ids if config.drops_word_types else None
        embedded = drop_words(embedded, config.word_dropout, self.training, words)
        return drop(embedded, config.dropout, self.training, config.variational_dropout)

    # ---------------------------------------------------------------- the equation

    def step(self, projected: Tensor, state: DecoderState, memory: Memory, loop: Loop, word: Tensor) -> Step:
        """One target position of the attended layers.

        before_cell (Bahdanau 2014, appendix A.2.2):  c_t = attend(s_{t-1});  s_t = cell(e_t, c_t, s_{t-1})
        after_cell (Luong 2015, sections 3.1 and 3.3):  s_t = cell(e_t, u_{t-1}, s_{t-1});  c_t = attend(s_t);
        u_t = tanh(W_c [s_t; c_t])
        before_cell with a transition of depth 2 or more (the conditional GRU, Miceli Barone 2017, section 2.1):
        s'_t = cell_1(e_t, s_{t-1});  c_t = attend(s'_t);  s_t = cell_2(c_t, s'_t), and the cells after it

        Args:
            projected: (batch, gates), the first layer's input product at this position; the word's vector where that
                layer is called.
            state: before the position.
            memory: the source.
            loop: what was cut and drawn once for the whole pass, at this position.
            word: (batch, embedding), the word's vector.
        """
        context = weights = gains = None
        carried = state.attention
        extra = state.feed
        if self.before_cell and not self.between_cells:
            context, weights, carried = self._attend(state.layers[self.attended - 1][0], state, memory)
            extra = context
            if self.context_gate is not None:
                gains = self.context_gate(word, state.layers[0][0], context)
        states, outputs = [], []
        for number in range(self.attended):
            layer = self.layers[number]
            if number:
                below = outputs[-1] if loop.drop[number] is None else outputs[-1] * loop.drop[number]
                extra = context if self.extra_size(number) else None
            if loop.weights[number] is None:
                read = below if number else word
                read = read if extra is None else torch.cat([read, extra], -1)
                output, after = layer(read.unsqueeze(1), state.layers[number])
                states.append(after)
                outputs.append(output[:, 0] + below if self.residual(number) else output[:, 0])
                continue
            if number:
                projected = linear(below, loop.weights[number].below, loop.weights[number].below_bias)
            before, keep = state.layers[number], loop.keep[number]
            after = layer.first_cell(projected, before, loop.weights[number], extra, keep, None if number else gains)
            if self.between_cells:
                context, weights, carried = self._attend(after[0], state, memory)
            after = layer.transit(after, loop.weights[number], context if self.between_cells else None)
            after = layer.zone_out(state.layers[number], after, loop.still[number])
            states.append(after)
            outputs.append(after[0] + below if self.residual(number) else after[0])
        if not self.before_cell:
            context, weights, carried = self._attend(outputs[-1], state, memory)
        return Step(tuple(states), tuple(outputs), context, weights, carried)

    def _attend(self, query: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, Tensor | None]:
        context, weights, carried = self.attention(
            query.unsqueeze(1), memory.keys, memory.values, memory.mask, state.position.unsqueeze(1), state.attention
        )
        return context.squeeze(1), weights, carried

    def residual(self, number: int) -> bool:
        """Whether layer `number` (from 0) adds its input to its output (GNMT, section 3.1)."""
        return self.config.residual_start is not None and number + 1 >= self.config.residual_start

    # ---------------------------------------------------------------- over time

    def forward(
        self,
        embedded: Tensor,
        state: DecoderState,
        memory: Memory,
        mask: Tensor | None = None,
        record: bool = False,
    ) -> DecoderTrace:
        """`step` over all target positions, with everything that does not wait for another position done at once.

        Args:
            embedded: (batch, target, embedding), word vectors.
            state: before the first position.
            memory: the source.
            mask: bool (batch, target), False where a position is padding: the state passes through it unchanged.
            record: also return the state before each position.
        """
        if record and embedded.shape[1] > 1:
            return self._one_by_one(embedded, state, memory, mask)
        if self.needs_loop and mask is None and embedded.shape[1] > 1 and self._scans():
            trace = attended_scan(self, embedded, state, memory, self._prepare(embedded))
        elif self.needs_loop:
            trace = self._attended_loop(embedded, state, memory, mask)
        else:
            trace = self._attended_at_once(embedded, state, memory, mask)
        states, outputs, context, weights, carried, readout, feed = trace
        outputs = list(outputs)
        layer_states = list(states)
        for number in range(len(outputs), len(self.layers)):
            below = self._between(outputs[-1])
            inputs = torch.cat([below, context], -1) if self.extra_size(number) else below
            after, end = self.layers[number](inputs, state.layers[number], None, None if mask is None else ~mask)
            outputs.append(after + below if self.residual(number) else after)
            layer_states.append(end)
        if readout is None:
            read = outputs[-1]
            if self.config.readout_state == "previous":
                read = self._previous(state.layers[-1][0], read, mask)
            readout = self.readout(read, context, embedded)
        gate = None
        if self.copy_gate is not None:
            # The scan of a fed readout keeps the weights alone.
            context = self.attention.context(weights, memory.values) if context is None else context
            gate = self.copy_gate(context, outputs[-1], embedded)
        steps = embedded.shape[1] if mask is None else mask.sum(1)
        after = DecoderState(tuple(layer_states), feed, state.position + steps, carried)
        return DecoderTrace(readout, after, (embedded, *outputs), weights, [state] if record else None, gate)

    def _attended_loop(self, embedded: Tensor, state: DecoderState, memory: Memory, mask: Tensor | None) -> Attended:
        """The reference: `step` at each position in turn."""
        loop = self._prepare(embedded)
        # A layer that is called reads the word's vector itself.
        projected = embedded
        if loop.weights[0] is not None:
            projected = linear(embedded, loop.weights[0].below, loop.weights[0].below_bias)
        held = None if mask is None else (~mask).unsqueeze(-1).unbind(1)
        steps, readouts = [], []
        for time in range(embedded.shape[1]):
            done = self.step(projected[:, time], state, memory, loop.at(time), embedded[:, time])
            feed = None
            if self.feed_size:
                feed = done.context
                if self.feeds_readout:
                    feed = self.readout(done.outputs[-1], done.context, embedded[:, time])
                    readouts.append(feed)
            layers = done.states + state.layers[self.attended :]
            after = DecoderState(layers, feed, state.position + 1, done.carried)
            if held is not None:
                after = hold(held[time], state, after)
            state = after
            steps.append(done)
        # Time-major in memory, like the scan's, so that the dropout above draws the same masks for both.
        outputs = tuple(
            torch.stack(tensors).transpose(0, 1) for tensors in zip(*(s.outputs for s in steps), strict=True)
        )
        return Attended(
            state.layers[: self.attended],
            outputs,
            torch.stack([s.context for s in steps]).transpose(0, 1),
            torch.cat([s.weights for s in steps], 2),
            state.attention,
            torch.stack(readouts).transpose(0, 1) if readouts else None,
            state.feed,
        )

    def _attended_at_once(self, embedded: Tensor, state: DecoderState, memory: Memory, mask: Tensor | None) -> Attended:
        """No position waits: each layer over the whole target, then attention for all positions together."""
        hold = None if mask is None else ~mask
        context = weights = carried = None
        target = embedded.shape[1]
        if memory.summary is not None:
            context = memory.summary.unsqueeze(1).expand(-1, target, -1)
        outputs, states = [], []
        for number in range(self.attended or len(self.layers)):
            below = self._between(outputs[-1]) if number else embedded
            inputs = torch.cat([below, context], -1) if self.extra_size(number) else below
            after, end = self.layers[number](inputs, state.layers[number], None, hold)
            outputs.append(after + below if self.residual(number) else after)
            states.append(end)
        if self.attention is not None:
            steps = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device) if mask is None else mask
            positions = state.position.unsqueeze(1) + steps.long().cumsum(1) - 1
            context, weights, carried = self.attention(
                outputs[-1], memory.keys, memory.values, memory.mask, positions, state.attention
            )
        return Attended(tuple(states), tuple(outputs), context, weights, carried, None, None)

    def _one_by_one(self, embedded: Tensor, state: DecoderState, memory: Memory, mask: Tensor | None) -> DecoderTrace:
        """Position by position, keeping the state before each: what assisted decoding needs to take tokens back."""
        traces, snapshots = [], []
        for time in range(embedded.shape[1]):
            snapshots.append(state)
            here = None if mask is None else mask[:, time : time + 1]
            traces.append(self.forward(embedded[:, time : time + 1], state, memory, here))
            state = traces[-1].state
        hidden = tuple(torch.cat(tensors, 1) for tensors in zip(*(t.hidden_states for t in traces), strict=True))
        weights = None if traces[0].weights is None else torch.cat([t.weights for t in traces], 2)
        gate = None if traces[0].gate is None else torch.cat([t.gate for t in traces], 1)
        return DecoderTrace(torch.cat([t.readout for t in traces], 1), state, hidden, weights, snapshots, gate)

    @staticmethod
    def _previous(before: Tensor, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """The state each position started from: `outputs` (batch, target, hidden) moved on by one real position."""
        shifted = torch.cat([before.unsqueeze(1), outputs[:, :-1]], 1)
        if mask is None:
            return shifted
        # The last real position at or before the one to the left; 0 stands for the starting state.
        numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        last = (numbers * mask).cummax(1).values
        last = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)
        every = torch.cat([before.unsqueeze(1), outputs], 1)
        return every.gather(1, last.unsqueeze(-1).expand_as(outputs))

    def _between(self, states: Tensor) -> Tensor:
        return drop(states, self.config.dropout, self.training, self.config.variational_dropout)

    def _prepare(self, embedded: Tensor) -> Loop:
        """Cuts weights and draws masks once for a whole pass."""
        attended = self.layers[: self.attended]
        called = [self._calls_layer(number) for number in range(self.attended)]
        weights = [
            None if called[number] else layer.step_weights(self.extra_size(number))
            for number, layer in enumerate(attended)
        ]
        drop: list[Tensor | None] = [None] * len(attended)
        if self.training and self.config.dropout:
            batch, target = embedded.shape[:2]
            masks = 1 if self.config.variational_dropout else target
            like = embedded.new_empty(masks, batch, self.config.hidden_size)
            drop[1:] = [dropout_mask(like, self.config.dropout) for _ in attended[1:]]
        nothing = [None] * embedded.shape[1]
        pairs = list(zip(called, attended, strict=True))
        still = [nothing if skip else layer.zoneout_masks(embedded, embedded.shape[1]) for skip, layer in pairs]
        return Loop(weights, [None if skip else layer.recurrent_mask(embedded) for skip, layer in pairs], drop, still)

    def _calls_layer(self, number: int) -> bool:
        """Whether an attended layer is called at each position, for what stands on it that `step` leaves out.

        Raises:
            ConfigError: an option needs the inside of the layer.
        """
        layer = self.layers[number]
        if departure(layer, RecurrentLayer, _CALLED_OF_A_LAYER) is None and not layer.calls_kernel():
            return False
        option = self._needs_inside(number)
        if option is None:
            return True
        # Hooks of all modules are told of what is called, and here the layer never is.
        reason = departure(layer, RecurrentLayer, _CALLED_OF_A_LAYER, everywhere=False)
        if reason is None and layer.calls_kernel():
            reason = "what stands on its kernel"
        if reason:
            raise ConfigError(f"{option}: computes decoder.layers.{number} in parts, and would leave out {reason}")
        return False

    def _needs_inside(self, number: int) -> str | None:
        config = self.config
        if number == 0 and (self.between_cells or self.context_gate is not None):
            return "decoder_transition_depth" if self.between_cells else f"context_gate={config.context_gate!r}"
        for name in ("recurrent_dropout", "weight_drop"):  # one mask for all positions
            if self.training and getattr(config, name) > 0:
                return f"{name}={getattr(config, name)} in training"
        return None


__all__ = ["RnnDecoder"]
