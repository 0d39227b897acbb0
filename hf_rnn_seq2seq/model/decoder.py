"""The recurrent decoder: `step` is the equation of one target position, `forward` runs it over time.

Reading order: `Readout` in readout.py, then `RnnDecoder.step`, then `RnnDecoder.forward`. The decoder reads encoder
states, a mask and a starting state, and does not depend on the encoder that made them.

Its layers are split in two. The attended layers are those up to the layer whose state is the query: position t needs what
was read at t-1 or t, so they run in the time loop. The upper layers only read the layers below, so each runs over the
whole target at once. With `attention_layer="bottom"` (GNMT) one layer is in the loop; with `after_cell` attention without
input feeding, and without attention, no layer is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import build_attention
from .config_checks import ConfigError
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .copying import CopyGate, missing_source
from .decoder_state import Attended, DecoderState, DecoderTrace, LoopConstants, Memory, Step, hold_at_padding
from .departures import departure, override
from .dropout import State, drop, drop_words, dropout_mask
from .hard_attention import Jumps, SampledAttention, start
from .matmul import linear
from .readout import ContextGate, Readout, ScalarGate, gates_cell
from .recurrence import RecurrentLayer, states_at
from .scan import attended_scan, scan_refusal

# Methods of a layer that `RnnDecoder.step` calls itself. A change of any other method makes the decoder call the layer.
_CALLED_OF_A_LAYER = ("step_weights", "first_cell", "transit", "zone_out", "recurrent_mask", "zoneout_masks")
_CALLED_OF_A_LAYER += ("zero_state", "calls_kernel")

# Methods that compute one position. The paths that compute all positions together do not call them.
_ONE_POSITION = ("step", "_attend", "_attended_loop")


class RnnDecoder(nn.Module):
    """A stack of recurrent layers that reads a source by its first state, a fixed vector, or attention."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = None  # a decoder without words reads vectors
        if config.vocab_size is not None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.attention = build_attention(config) if config.context == "attention" else None
        self.before_cell = config.attention_order == "before_cell"
        self.between_cells = config.attends_between_cells
        self.attended = 0
        if self.attention is not None:
            self.attended = 1 if config.attention_layer == "bottom" else config.decoder_layers
        # The attentional vector can be fed back only if the loop computes it; otherwise the context is fed back.
        self.feeds_readout = (
            config.input_feeding and config.readout == "tanh" and self.attended == config.decoder_layers
        )
        self.feed_size = 0
        if config.input_feeding:
            self.feed_size = config.readout_size if self.feeds_readout else config.context_width
        self.layers = nn.ModuleList(self._build_layer(number) for number in range(config.decoder_layers))
        self.context_gate = ContextGate(config, config.hidden_size, config.hidden_size) if gates_cell(config) else None
        self.scalar_gate = ScalarGate(config) if config.context_gate == "scalar" else None
        self.readout = Readout(config)
        self.copy_gate = CopyGate(config) if config.copy_mechanism else None
        self.aligns_hard = self.attention is not None and config.aligns_hard
        self.jumps = Jumps(config) if self.aligns_hard and config.alignment_order else None
        self.sampler = SampledAttention(config) if config.samples_attention else None

    def _build_layer(self, number: int) -> RecurrentLayer:
        config = self.config
        below = config.hidden_size if number else config.embedding_size
        below += config.embedding_size if self.skips_to(number) else 0
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

    def skips_to(self, number: int) -> bool:
        """Whether layer `number` (from 0) reads the word's vector next to the layer below."""
        return self.config.skip_connections and number > 0

    def extra_size(self, number: int) -> int:
        """Width of what layer `number` (from 0) reads in addition to the layer below: the context, or the fed vector."""
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
        """Whether a position depends on what the position before it read, or one position has its own equation."""
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
        overridden = override(self, RnnDecoder, _ONE_POSITION)
        reason = scan_refusal(self) if overridden is None else f"{overridden}() of {type(self).__name__}"
        return f"loop: {reason}" if reason else "scan"

    def _scans(self) -> bool:
        path, setting = self.recurrence_path, self.config.decoder_recurrence
        if path != "scan" and setting == "scan":
            raise ConfigError(f"decoder_recurrence={setting!r}: the scan does not cover this model ({path})")
        return path == "scan"

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def prepare_memory(
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
        keys, values = self.attention.project_keys(encoder_states), self.attention.project_values(encoder_states)
        if self.aligns_hard:
            values = self._source_part(values)
        return Memory(keys, values, source_mask, summary, source_ids)

    def _source_part(self, values: Tensor) -> Tensor:
        """What each source word adds to the readout's products, (batch, source, units), and to the preferred step.

        Raises:
            ConfigError: hard attention computes the readout in parts, which would leave something out.
        """
        if reason := departure(self.readout, Readout):
            raise ConfigError(
                f"attention_alignment={self.config.attention_alignment!r}: computes decoder.readout in parts, and would "
                f"leave out {reason}"
            )
        parts = self.readout.source_part(values)
        return parts if self.jumps is None else torch.cat([parts, self.jumps.source(values)], -1)

    def start_state(self, layers: tuple[State, ...], memory: Memory) -> DecoderState:
        """The state before the first position, from each layer's starting state and the source."""
        like = layers[0][0]
        feed = like.new_zeros(like.shape[0], self.feed_size) if self.feed_size else None
        attention_state = None if self.attention is None else self.attention.start(memory.keys, memory.mask)
        if self.config.attention_alignment == "monotonic":
            attention_state = start(memory.values, memory.mask, self.readout.units)
        position = torch.zeros(like.shape[0], dtype=torch.long, device=like.device)
        return DecoderState(layers, feed, position, attention_state)

    def zero_state(self, like: Tensor, memory: Memory) -> DecoderState:
        """The state before the first position, zero, for the rows of `like` (batch, ...)."""
        return self.start_state(tuple(layer.zero_state(like) for layer in self.layers), memory)

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

    def step(self, projected: Tensor, state: DecoderState, memory: Memory, loop: LoopConstants, word: Tensor) -> Step:
        """One target position of the attended layers.

        before_cell (Bahdanau 2014, appendix A.2.2):  c_t = attend(s_{t-1});  s_t = cell(e_t, c_t, s_{t-1})
        after_cell (Luong 2015, sections 3.1 and 3.3):  s_t = cell(e_t, u_{t-1}, s_{t-1});  c_t = attend(s_t);
        u_t = tanh(W_c [s_t; c_t])
        before_cell with a transition of depth 2 or more (the conditional GRU, Miceli Barone 2017, section 2.1):
        s'_t = cell_1(e_t, s_{t-1});  c_t = attend(s'_t);  s_t = cell_2(c_t, s'_t), and the cells after it
        A layer above the first reads the layer below in the place of e_t, with skip connections both (Graves 2013,
        equation 2).

        Args:
            projected: (batch, gates), the first layer's input product at this position; the word's vector if that
                layer is called.
            state: before the position.
            memory: the source.
            loop: weights and masks of the pass, at this position.
            word: (batch, embedding), the word's vector.
        """
        context = weights = read = gate_factors = None
        attention_state = state.attention
        extra = state.feed
        if self.before_cell and not self.between_cells:
            query = state.layers[self.attended - 1][0]
            context, weights, read, attention_state = self._attend(query, state, memory, loop.draws)
            extra = context
            if self.context_gate is not None:
                gate_factors = self.context_gate(word, state.layers[0][0], context)
        states, outputs = [], []
        for number in range(self.attended):
            layer, before, cut = self.layers[number], state.layers[number], loop.weights[number]
            if number:
                mask = loop.input_masks[number]
                below = outputs[-1] if mask is None else outputs[-1] * mask
                entering = torch.cat([below, word], -1) if self.skips_to(number) else below
                extra = context if self.extra_size(number) else None
            if cut is None:
                inputs = entering if number else word
                inputs = inputs if extra is None else torch.cat([inputs, extra], -1)
                output, after = layer(inputs.unsqueeze(1), before)
                output = output[:, 0]
            else:
                if number:
                    projected = linear(entering, cut.below, cut.below_bias)
                factors = None if number else gate_factors
                after = layer.first_cell(projected, before, cut, extra, loop.recurrent_masks[number], factors)
                if self.between_cells:
                    context, weights, read, attention_state = self._attend(after[0], state, memory, loop.draws)
                after = layer.transit(after, cut, context if self.between_cells else None)
                after = layer.zone_out(before, after, loop.zoneout_masks[number])
                output = after[0]
            states.append(after)
            outputs.append(output + below if self.residual(number) else output)
        if not self.before_cell:
            context, weights, read, attention_state = self._attend(outputs[-1], state, memory, loop.draws)
        return Step(tuple(states), tuple(outputs), context, weights, attention_state, read)

    def _attend(
        self, query: Tensor, state: DecoderState, memory: Memory, draws: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        context, weights, read, attention_state = self._read(
            query.unsqueeze(1), memory, state.position.unsqueeze(1), state.attention, draws
        )
        return context.squeeze(1), weights, read, attention_state

    def _read(
        self, query: Tensor, memory: Memory, positions: Tensor, state: Tensor | None, draws: Tensor | None
    ) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """Context (batch, target, context), weights (batch, heads, target, source), what was read, and the next state.

        Args:
            query: (batch, target, hidden).
            memory: the source.
            positions: (batch, target).
            state: what the attention carries.
            draws: of a sampled attention in training the sentences that draw. What was read is then (batch, heads,
                target, source), else None.
        """
        context, weights, state = self.attention(query, memory.keys, memory.values, memory.mask, positions, state)
        read = None
        if self.sampler is not None:
            read = self.sampler(weights, draws)
            context = self.attention.context(read, memory.values)
        if self.scalar_gate is not None:
            context = self.scalar_gate(query, context)
        return context, weights, read if self.training else None, state

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
        """`step` over all target positions; whatever does not depend on another position is computed at once.

        Args:
            embedded: (batch, target, embedding), word vectors.
            state: before the first position.
            memory: the source.
            mask: bool (batch, target), False where a position is padding: the state passes through it unchanged.
            record: also return the state before each position.
        """
        if record and embedded.shape[1] > 1:
            return self._record(embedded, state, memory, mask)
        attended = self._attended(embedded, state, memory, mask)
        outputs, states = self._upper_layers(attended, embedded, state, mask)
        readout = attended.readout
        if readout is None:
            readout = self._read_out(outputs, attended.context, embedded, state, mask)
        gate = None if self.copy_gate is None else self._copy_gate(attended, outputs[-1], embedded, memory)
        steps = embedded.shape[1] if mask is None else mask.sum(1)
        after = DecoderState(states, attended.feed, state.position + steps, attended.attention_state)
        snapshots = [state] if record else None
        return DecoderTrace(readout, after, (embedded, *outputs), attended.weights, snapshots, gate, attended.read)

    def _attended(self, embedded: Tensor, state: DecoderState, memory: Memory, mask: Tensor | None) -> Attended:
        """The attended layers over all positions, by the fastest path that covers the model."""
        if not self.needs_loop:
            return self._attended_at_once(embedded, state, memory, mask)
        if self.aligns_hard:
            raise ConfigError(
                f"attention_alignment={self.config.attention_alignment!r}: computes all positions at once, and would leave "
                f"out {override(self, RnnDecoder, _ONE_POSITION) or 'the state of the attention'}"
            )
        if mask is None and embedded.shape[1] > 1 and self._scans():
            return attended_scan(self, embedded, state, memory, self._loop_constants(embedded))
        return self._attended_loop(embedded, state, memory, mask)

    def _attended_loop(self, embedded: Tensor, state: DecoderState, memory: Memory, mask: Tensor | None) -> Attended:
        """The reference: `step` at each position in turn."""
        loop = self._loop_constants(embedded)
        # A layer that is called reads the word's vector itself.
        projected = embedded
        if loop.weights[0] is not None:
            projected = linear(embedded, loop.weights[0].below, loop.weights[0].below_bias)
        padding = None if mask is None else (~mask).unsqueeze(-1).unbind(1)
        steps, readouts = [], []
        # The gradient of `unbind` is written once; that of each slice would be as large as the whole sequence.
        for time, (product, word) in enumerate(zip(projected.unbind(1), embedded.unbind(1), strict=True)):
            step = self.step(product, state, memory, loop.at(time), word)
            feed = None
            if self.feed_size:
                feed = step.context
                if self.feeds_readout:
                    feed = self.readout(self._read_by_readout(step.outputs), step.context, word)
                    readouts.append(feed)
            layers = step.states + state.layers[self.attended :]
            after = DecoderState(layers, feed, state.position + 1, step.attention_state)
            state = after if padding is None else hold_at_padding(padding[time], state, after)
            steps.append(step)
        # Time-major in memory, like the scan's, so that the dropout above draws the same masks for both.
        outputs = tuple(
            torch.stack(tensors).transpose(0, 1) for tensors in zip(*(s.outputs for s in steps), strict=True)
        )
        return Attended(
            states=state.layers[: self.attended],
            outputs=outputs,
            context=torch.stack([s.context for s in steps]).transpose(0, 1),
            weights=torch.cat([s.weights for s in steps], 2),
            attention_state=state.attention,
            readout=torch.stack(readouts).transpose(0, 1) if readouts else None,
            feed=state.feed,
            read=None if steps[0].read is None else torch.cat([s.read for s in steps], 2),
        )

    def _attended_at_once(self, embedded: Tensor, state: DecoderState, memory: Memory, mask: Tensor | None) -> Attended:
        """No position depends on another: each layer over the whole target, then attention for all positions together."""
        context = weights = read = attention_state = None
        if memory.summary is not None:
            context = memory.summary.unsqueeze(1).expand(-1, embedded.shape[1], -1)
        outputs, states = [], []
        for number in range(self.attended or len(self.layers)):
            below = self._between(outputs[-1]) if number else embedded
            output, end = self._whole_layer(number, below, embedded, context, state, mask)
            outputs.append(output)
            states.append(end)
        if self.attention is not None:
            steps = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device) if mask is None else mask
            positions = state.position.unsqueeze(1) + steps.long().cumsum(1) - 1
            draws = None if self.sampler is None else self.sampler.rows(embedded)
            context, weights, read, attention_state = self._read(outputs[-1], memory, positions, state.attention, draws)
        return Attended(tuple(states), tuple(outputs), context, weights, attention_state, None, None, read)

    def _upper_layers(
        self, attended: Attended, embedded: Tensor, state: DecoderState, mask: Tensor | None
    ) -> tuple[list[Tensor], tuple[State, ...]]:
        """Outputs (batch, target, hidden) and last states of ALL layers: those of the attended ones, and the rest."""
        outputs, states = list(attended.outputs), list(attended.states)
        for number in range(len(outputs), len(self.layers)):
            below = self._between(outputs[-1])
            output, end = self._whole_layer(number, below, embedded, attended.context, state, mask)
            outputs.append(output)
            states.append(end)
        return outputs, tuple(states)

    def _whole_layer(
        self,
        number: int,
        below: Tensor,
        embedded: Tensor,
        context: Tensor | None,
        state: DecoderState,
        mask: Tensor | None,
    ) -> tuple[Tensor, State]:
        """Layer `number` over the whole target: outputs (batch, target, hidden) and the state after the last position."""
        parts = [below] + [embedded] * self.skips_to(number) + [context] * (self.extra_size(number) > 0)
        inputs = torch.cat(parts, -1) if len(parts) > 1 else below
        output, end = self.layers[number](inputs, state.layers[number], None, None if mask is None else ~mask)
        return output + below if self.residual(number) else output, end

    def _read_by_readout(self, layers: Sequence[Tensor]) -> Tensor:
        """What the readout reads of the layers' states (batch, ..., hidden): the top one, or with skip connections all."""
        return torch.cat(tuple(layers), -1) if self.config.skip_connections else layers[-1]

    def _read_out(
        self,
        outputs: list[Tensor],
        context: Tensor | None,
        embedded: Tensor,
        before: DecoderState,
        mask: Tensor | None,
    ) -> Tensor:
        """The readout (batch, target, readout) from the outputs of each layer (batch, target, hidden).

        With hard attention what the target adds to its products, (batch, target, units).
        """
        states = self._read_by_readout(outputs)
        if self.aligns_hard:
            parts = self.readout.target_part(states, embedded)
            return parts if self.jumps is None else torch.cat([parts, self.jumps.state(outputs[-1])], -1)
        if self.config.readout_state == "previous":
            states = self._previous(self._read_by_readout([layer[0] for layer in before.layers]), states, mask)
        return self.readout(states, context, embedded)

    def _copy_gate(self, attended: Attended, states: Tensor, embedded: Tensor, memory: Memory) -> Tensor:
        context = attended.context
        if context is None:  # the scan of a fed readout returns the attention weights only
            context = self.attention.context(attended.weights, memory.values)
        return self.copy_gate(context, states, embedded)

    def _record(self, embedded: Tensor, state: DecoderState, memory: Memory, mask: Tensor | None) -> DecoderTrace:
        """One call of `forward` per position, with the state before each: assisted decoding takes tokens back with it."""
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
        """The state each position started from: `outputs` (batch, target, hidden) moved right by one real position."""
        shifted = torch.cat([before.unsqueeze(1), outputs[:, :-1]], 1)
        if mask is None:
            return shifted
        # The last real position at or before the one to the left; 0 means the starting state.
        numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        last = (numbers * mask).cummax(1).values
        last = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)
        every = torch.cat([before.unsqueeze(1), outputs], 1)
        return states_at(every, last)

    def _between(self, states: Tensor) -> Tensor:
        return drop(states, self.config.dropout, self.training, self.config.variational_dropout)

    # ---------------------------------------------------------------- weights and masks of a pass

    def _loop_constants(self, embedded: Tensor) -> LoopConstants:
        """Cuts weights and draws masks once for a whole pass."""
        attended = self.layers[: self.attended]
        batch, target = embedded.shape[:2]
        called = [self._calls_layer(number) for number in range(self.attended)]
        weights = [
            None if called[number] else layer.step_weights(self.extra_size(number))
            for number, layer in enumerate(attended)
        ]
        input_masks: list[Tensor | None] = [None] * len(attended)
        if self.training and self.config.dropout:
            masks = 1 if self.config.variational_dropout else target
            like = embedded.new_empty(masks, batch, self.config.hidden_size)
            input_masks[1:] = [dropout_mask(like, self.config.dropout) for _ in attended[1:]]
        pairs = list(zip(called, attended, strict=True))
        zoneout = [[None] * target if skip else layer.zoneout_masks(embedded, target) for skip, layer in pairs]
        recurrent = [None if skip else layer.recurrent_mask(embedded) for skip, layer in pairs]
        draws = None if self.sampler is None else self.sampler.rows(embedded)
        return LoopConstants(weights, recurrent, input_masks, zoneout, draws)

    def _calls_layer(self, number: int) -> bool:
        """Whether an attended layer is called at each position, because of a hook or a change that `step` leaves out.

        Raises:
            ConfigError: an option needs the parts of the layer.
        """
        layer = self.layers[number]
        if departure(layer, RecurrentLayer, _CALLED_OF_A_LAYER) is None and not layer.calls_kernel():
            return False
        option = self._needs_parts(number)
        if option is None:
            return True
        # Hooks of all modules run for whatever is called, and here the layer never is.
        reason = departure(layer, RecurrentLayer, _CALLED_OF_A_LAYER, everywhere=False)
        if reason is None and layer.calls_kernel():
            reason = "a change of its kernel"
        if reason:
            raise ConfigError(f"{option}: computes decoder.layers.{number} in parts, and would leave out {reason}")
        return False

    def _needs_parts(self, number: int) -> str | None:
        """The option that needs the parts of a layer, or None."""
        config = self.config
        if number == 0 and (self.between_cells or self.context_gate is not None):
            return "decoder_transition_depth" if self.between_cells else f"context_gate={config.context_gate!r}"
        for name in ("recurrent_dropout", "weight_drop"):  # one mask for all positions
            if self.training and getattr(config, name) > 0:
                return f"{name}={getattr(config, name)} in training"
        return None
