"""Hooks on a model, replaced parts and overridden methods are used in training, in `generate()` and in `search`."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from hf_rnn_seq2seq.generation.translate import translate_ids
from hf_rnn_seq2seq.model import fused_step
from hf_rnn_seq2seq.model.attention import AdditiveAttention, GeneralAttention, MultiHeadAttention
from hf_rnn_seq2seq.model.decoder import RnnDecoder
from hf_rnn_seq2seq.model.fused_step import build_step, fingerprints
from hf_rnn_seq2seq.model.readout import Readout
from hf_rnn_seq2seq.model.recurrence import RecurrentLayer
from tests.helpers.models import batch, mask, pad, tiny_model

SYSTEMS: dict[str, dict[str, Any]] = {
    "feeding": {"input_feeding": True},
    "at once": {"input_feeding": False, "cell_type": "gru"},
    "before the cell": {"attention_order": "before_cell", "attention_type": "additive"},
    "heads": {"attention_type": "multi_head", "num_attention_heads": 2, "attention_size": 4, "decoder_layers": 2},
    "copying": {"copy_mechanism": True, "input_feeding": True},
    "window": {"attention_type": "window", "window_components": 2},
}
SOURCES = [[5, 7, 3, 2], [4, 6, 8, 9, 10, 2], [3, 2]]


def build(system: str, **options: Any) -> Any:
    return tiny_model(**(SYSTEMS[system] | options), dtype=torch.float32, vocab_size=30, deviation=0.8)


def sources() -> dict[str, Tensor]:
    return {"input_ids": pad(SOURCES), "attention_mask": mask(SOURCES)}


def logits(model: Any) -> Tensor:
    """Logits of forced targets, all positions in one call."""
    with torch.no_grad():
        return model(**batch(SOURCES), skip_logits=False).logits


def assert_one_model_speaks(model: Any, plain: Tensor | None = None, exact: bool = True) -> None:
    """All positions together, position by position, `search` and `generate()`."""
    together = logits(model)
    if plain is not None:
        assert (together - plain).abs().max() > 1e-3, "what was put on the model does nothing"
    if exact:
        given = batch(SOURCES)
        words = model.prepare_decoder_input_ids_from_labels(given.pop("labels"))
        cache, alone = None, []
        with torch.no_grad():
            for word in words.split(1, 1):
                actual = model.model(**given, decoder_input_ids=word, cache=cache, use_cache=True)
                alone.append(model.score_words(actual.last_hidden_state, actual.copying))
                cache = actual.cache
        torch.testing.assert_close(torch.cat(alone, 1), together, atol=2e-5, rtol=1e-4)
    assert_search_equals_generate(model)


def assert_search_equals_generate(model: Any, **options: Any) -> None:
    call = {"num_beams": 3, "max_new_tokens": 5, "eos_token_id": None} | options
    assert model.search(**sources(), **call).tolist() == model.generate(**sources(), **call).tolist()


def part(model: Any, path: str) -> nn.Module:
    return model.get_submodule(path)


def replace(model: Any, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


DECODER = "model.decoder"
KERNEL = f"{DECODER}.layers.0.kernel"


def scaled(output: Any) -> Any:
    """Half of every tensor that a module returns."""
    if isinstance(output, Tensor):
        return output * 0.5
    if hasattr(output, "_fields"):
        return output._replace(readout=output.readout * 0.5)
    first, *rest = output
    return (first * 0.5, *rest)


class Halved(nn.Linear):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) * 0.5


class HalvedLSTM(nn.LSTM):
    def forward(self, inputs: Tensor, hx: Any = None) -> Any:
        return scaled(super().forward(inputs, hx))


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def hook(path: str) -> Callable[[Any], None]:
    return lambda model: part(model, path).register_forward_hook(lambda module, given, output: scaled(output)) and None


def patch(path: str) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        module = part(model, path)
        plain = module.forward
        module.forward = lambda *args, **kwargs: scaled(plain(*args, **kwargs))

    return apply


def parametrized(path: str, name: str) -> Callable[[Any], None]:
    return lambda model: parametrize.register_parametrization(part(model, path), name, Half()) and None


def normed(path: str, name: str, old: bool = False) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        wrap = torch.nn.utils.spectral_norm if old else parametrizations.weight_norm
        wrap(part(model, path), name)
        with torch.no_grad():
            for own, parameter in part(model, path).named_parameters():
                if own.endswith("original0"):
                    parameter.mul_(0.5)

    return apply


def replaced(path: str, kind: type[nn.Module]) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        part(model, path).__class__ = kind

    return apply


def compiled(path: str, in_place: bool) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        module = part(model, path)
        if in_place:
            module.compile(backend="eager")
        else:
            replace(model, path, torch.compile(module, backend="eager"))

    return apply


def lora(targets: str | list[str], **options: Any) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        peft = pytest.importorskip("peft", reason="peft is not installed")
        config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False, **options)
        torch.manual_seed(0)
        peft.inject_adapter_in_model(config, model)
        model.eval()

    return apply


def ia3(model: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.IA3Config(target_modules=["project", "lm_head"], feedforward_modules=[], init_ia3_weights=False)
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "ia3_" in name:
            nn.init.constant_(parameter, 0.5)
    model.eval()


def quantized(*kinds: type[nn.Module]) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        from torch.ao.quantization import quantize_dynamic

        quantize_dynamic(model, set(kinds), inplace=True)

    return apply


CHANGES: dict[str, tuple[list[str], Callable[[Any], None]]] = {
    "hook on the word vectors": (["feeding", "copying"], hook(f"{DECODER}.embed_tokens")),
    "hook on the output layer": (["feeding", "copying"], hook("lm_head")),
    "hook on the kernel": (["feeding", "at once", "heads"], hook(KERNEL)),
    "hook on the layer": (["feeding", "at once", "before the cell"], hook(f"{DECODER}.layers.0")),
    "hook on the encoder's kernel": (["feeding", "at once"], hook("model.encoder.layers.0.forward_layer.kernel")),
    "hook on the attention": (["feeding", "at once", "heads"], hook(f"{DECODER}.attention")),
    "hook on the attention's query": (["before the cell", "heads"], hook(f"{DECODER}.attention.query")),
    "hook on the window": (["window"], hook(f"{DECODER}.attention.window_over_source")),
    "hook on the window's product": (["window"], hook(f"{DECODER}.attention.window_over_source.project")),
    "hook on the readout": (["feeding", "at once"], hook(f"{DECODER}.readout")),
    "hook on the readout's product": (["copying"], hook(f"{DECODER}.readout.project")),
    "hook on the copy gate": (["copying"], hook(f"{DECODER}.copy_gate")),
    "hook on the copy gate's product": (["copying"], hook(f"{DECODER}.copy_gate.project")),
    "hook on the decoder": (["feeding", "heads"], hook(DECODER)),
    "forward of the kernel patched": (["feeding"], patch(KERNEL)),
    "forward of the readout patched": (["feeding"], patch(f"{DECODER}.readout")),
    "parametrized output layer": (["feeding"], parametrized("lm_head", "weight")),
    "parametrized readout": (["copying"], parametrized(f"{DECODER}.readout.project", "weight")),
    "parametrized kernel": (["feeding", "at once", "heads"], parametrized(KERNEL, "weight_hh_l0")),
    "parametrized word vectors": (["feeding"], parametrized(f"{DECODER}.embed_tokens", "weight")),
    "weight norm of a kernel": (["at once"], normed(KERNEL, "weight_hh_l0")),
    "old spectral norm": (["at once"], normed(f"{DECODER}.readout.project", "weight", old=True)),
    "old spectral norm of a kernel": (["feeding", "at once"], normed(KERNEL, "weight_hh_l0", old=True)),
    "another output layer": (["feeding", "copying"], replaced("lm_head", Halved)),
    "another energy": (["before the cell"], replaced(f"{DECODER}.attention.energy", Halved)),
    "another LSTM": (["heads"], replaced(KERNEL, HalvedLSTM)),
    "LoRA on the linear parts": (
        list(SYSTEMS),
        lora(["query", "key", "value", "output", "energy", "project", "lm_head"]),
    ),
    "LoRA on the word vectors": (["feeding", "at once", "heads"], lora(["embed_tokens"])),
    "DoRA": (["feeding", "before the cell", "heads"], lora(["energy", "output", "project", "lm_head"], use_dora=True)),
    "IA3": (["feeding"], ia3),
    "a compiled output layer": (["feeding"], compiled("lm_head", in_place=False)),
    "a compiled kernel": (["feeding"], compiled(KERNEL, in_place=False)),
    "a compiled layer": (["at once"], compiled(f"{DECODER}.layers.0", in_place=False)),
    "a compiled attention": (["feeding"], compiled(f"{DECODER}.attention", in_place=False)),
    "a readout compiled in place": (["feeding"], compiled(f"{DECODER}.readout", in_place=True)),
    "quantized products": (["feeding", "heads"], quantized(nn.Linear)),
    "quantized layers": (["feeding", "at once", "before the cell", "heads"], quantized(nn.LSTM, nn.GRU)),
}
PAIRS = [(system, name) for name, (systems, _) in CHANGES.items() for system in systems]


FUSED = ("feeding", "at once", "copying")


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("system", "change"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
def test_hooks_and_replaced_parts_are_used_on_every_path(system: str, change: str) -> None:
    model = build(system)
    plain = logits(model)
    assert (model.search_path == "fused") == (system in FUSED)
    assert_search_equals_generate(
        model, num_beams=1, max_new_tokens=2
    )  # with the step that is kept for the next search
    CHANGES[change][1](model)
    # Dynamic quantization scales by the values of the batch.
    quantized = "quantized" in change
    assert_one_model_speaks(model, None if quantized or "compile" in change else plain, exact=not quantized)


class OwnStep(RnnDecoder):
    def step(self, projected, state, memory, loop, word):
        done = super().step(projected, state, memory, loop, word)
        return done._replace(outputs=tuple(output * 0.5 for output in done.outputs))


class OwnEmbed(RnnDecoder):
    def embed(self, input_ids: Tensor) -> Tensor:
        return super().embed(input_ids) * 0.5


class OwnForward(RnnDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        trace = super().forward(*args, **kwargs)
        return trace._replace(readout=trace.readout * 0.5)


class OwnStart(RnnDecoder):
    def start_state(self, layers, memory):
        return super().start_state(tuple(tuple(t * 0.5 for t in layer) for layer in layers), memory)


class OwnReadout(Readout):
    def forward(self, state, context, embedding):
        return super().forward(state, context, embedding) * 0.5


class OwnCell(RecurrentLayer):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(tensor * 0.9 for tensor in super().step(*args, **kwargs))


class OwnFirstCell(RecurrentLayer):
    def first_cell(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(tensor * 0.9 for tensor in super().first_cell(*args, **kwargs))


class OwnZoneOut(RecurrentLayer):
    def zone_out(self, before, after, still=None):
        return tuple(0.5 * old + 0.5 * new for old, new in zip(before, after, strict=True))


def own_attention(base: type, name: str) -> type:
    """A subclass that overrides one method, which computes one target position at a time as the loop does."""

    def halved(self: Any, *args: Any) -> Any:
        return scaled(getattr(base, name)(self, *args))

    return type(f"Own{base.__name__}", (base,), {name: halved})


ATTENTIONS = {
    "feeding": GeneralAttention,
    "at once": GeneralAttention,
    "before the cell": AdditiveAttention,
    "heads": MultiHeadAttention,
    "copying": GeneralAttention,
}
OVERRIDES: dict[str, tuple[str, type]] = {
    "step": (DECODER, OwnStep),
    "embed": (DECODER, OwnEmbed),
    "forward": (DECODER, OwnForward),
    "start_state": (DECODER, OwnStart),
    "readout": (f"{DECODER}.readout", OwnReadout),
    "cell": (f"{DECODER}.layers.0", OwnCell),
    "first cell": (f"{DECODER}.layers.0", OwnFirstCell),
    "zone_out": (f"{DECODER}.layers.0", OwnZoneOut),
    "encoder's cell": ("model.encoder.layers.0.forward_layer", OwnCell),
}
METHODS = ["score", "context", "forward", "project_keys", "project_values"]


def overriding(system: str, what: str) -> tuple[str, type]:
    """The path of a part, and the class that replaces its class."""
    if what in OVERRIDES:
        return OVERRIDES[what]
    return f"{DECODER}.attention", own_attention(ATTENTIONS[system], what)


OVERRIDDEN = [(system, what) for system in ("feeding", "at once") for what in (*OVERRIDES, *METHODS)]
OVERRIDDEN += [("before the cell", what) for what in ("step", "first cell", "score", "context", "forward")]
OVERRIDDEN += [("heads", what) for what in ("cell", "score", "context")] + [
    ("copying", "readout"),
    ("copying", "context"),
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("system", "what"), OVERRIDDEN)
def test_overridden_methods_are_used_on_every_path(system: str, what: str) -> None:
    model = build(system)
    plain = logits(model)
    path, kind = overriding(system, what)
    part(model, path).__class__ = kind
    assert_one_model_speaks(model, plain)


@pytest.mark.parametrize("what", ["step", "embed", "readout", "cell", "first cell", "score", "context"])
def test_methods_set_on_an_instance_are_used_on_every_path(what: str) -> None:
    model = build("feeding")
    plain = logits(model)
    path, kind = overriding("feeding", what)
    own, module = {"readout": "forward", "cell": "step", "first cell": "first_cell"}.get(what, what), part(model, path)

    def halved(self: Any, *args: Any, **kwargs: Any) -> Any:
        actual = getattr(type(self), own)(self, *args, **kwargs)
        if what == "step":
            return actual._replace(outputs=tuple(output * 0.5 for output in actual.outputs))
        return tuple(0.9 * tensor for tensor in actual) if "cell" in what else 0.5 * actual

    setattr(module, own, types.MethodType(halved, module))
    assert_one_model_speaks(model, plain)
    assert model.search_path.startswith("general: ") and own in model.search_path
    if what != "embed":
        assert model.get_decoder().recurrence_path.startswith("loop: ") and own in model.get_decoder().recurrence_path
        model.config.decoder_recurrence = "scan"
        with pytest.raises(ValueError, match=f"decoder_recurrence='scan': .*{own}"):
            logits(model)


@pytest.mark.parametrize("what", ["model", "base", "everything", "subclass", "score_words", "compile()", "decoder"])
def test_changes_of_the_whole_model_send_the_search_to_generate(what: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build("feeding")
    plain = model.search(**sources(), max_new_tokens=5, eos_token_id=None)

    def turned(module: Any, given: Any, output: Any) -> Any:
        if getattr(output, "logits", None) is not None:
            output.logits = output.logits.flip(-1)
        elif module is model.model:
            output.last_hidden_state = -output.last_hidden_state
        return output

    handle = None
    if what == "model":
        model.register_forward_hook(turned)
    elif what == "base":
        model.model.register_forward_hook(turned)
    elif what == "everything":
        handle = nn.modules.module.register_module_forward_hook(turned)
    elif what == "subclass":
        kind = type(model)
        own = {"forward": lambda self, *args, **kwargs: turned(self, args, kind.forward(self, *args, **kwargs))}
        model.__class__ = type("Turned", (kind,), own)
    elif what == "score_words":
        score = model.score_words
        model.score_words = lambda *args: score(*args).flip(-1)
    elif what == "compile()":
        model.compile(backend="eager")
    else:
        compiled(DECODER, in_place=False)(model)
    try:
        assert model.search_path.startswith("generate(): ") and not model.search_covers()
        found = model.search(**sources(), max_new_tokens=5, eos_token_id=None)
        assert found.tolist() == model.generate(**sources(), max_new_tokens=5, eos_token_id=None).tolist()
        assert (found.tolist() == plain.tolist()) == (what in ("compile()", "decoder"))
        with pytest.raises(ValueError, match="return_alignments"):
            model.search(**sources(), return_alignments=True)
    finally:
        if handle is not None:
            handle.remove()


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("system", "how"),
    [
        *(("feeding", how) for how in ("data", "numpy", "swap", "pointer", "no_grad", "tensor")),
        ("before the cell", "data"),
    ],
)
def test_a_search_notices_changed_weights(system: str, how: str) -> None:
    """A change of a single value is noticed, in each tensor and by each way of writing."""
    model = build(system)
    for name, parameter in model.named_parameters():
        model.search(**sources(), max_new_tokens=2, num_beams=2)
        flat = parameter.data.view(-1)
        if how == "data":
            flat[len(flat) // 2] += 0.25
        elif how == "numpy":
            flat.numpy()[-1] -= 0.25
        elif how == "swap":
            flat[[0, 1]] = flat[[1, 0]]
        elif how == "pointer":
            parameter.data = parameter.data.flip(0).contiguous()
        elif how == "tensor":
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, nn.Parameter(parameter.data.flip(0).contiguous()))
        else:
            with torch.no_grad():
                parameter.view(-1)[0] += 0.25
        fresh = build(system)
        fresh.load_state_dict(model.state_dict())
        found = model.search(**sources(), max_new_tokens=2, return_dict_in_generate=True, num_beams=2)
        expected = fresh.search(**sources(), max_new_tokens=2, return_dict_in_generate=True, num_beams=2)
        assert found.sequences_scores.tolist() == expected.sequences_scores.tolist(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3, 40_000, 2**15, 2**17 + 5])
def test_a_fingerprint_depends_on_every_value(dtype: torch.dtype, size: int) -> None:
    values = torch.randn(size + 1, dtype=dtype)[1:]  # not where 8 bytes begin
    (before,) = fingerprints([values])
    for place in {0, size // 2, size - 1}:
        changed = values.clone()
        changed[place] = torch.nextafter(changed[place].float(), torch.tensor(9.0)) if dtype.itemsize > 2 else 9
        assert fingerprints([changed]) != [before]
    assert fingerprints([values.clone()]) == [before]
    if size > 1:
        assert fingerprints([values.roll(1)]) != [before]


def test_weights_are_compared_once_for_all_batches_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of an ensemble, and with several threads; the next call sees what was written through `.data`."""
    compared: list[int] = []
    compare = fused_step.fingerprints
    monkeypatch.setattr(fused_step, "fingerprints", lambda tensors: compared.append(1) or compare(tensors))
    model, other = build("feeding"), build("feeding")
    rows = [[3 + number % 8, 5, 6] for number in range(18)]

    def translations(**options: Any) -> list[list[int]]:
        compared.clear()
        return translate_ids(model, rows, batch_size=6, ensemble=[other], max_new_tokens=3, progress=False, **options)

    first = translations()
    assert len(compared) == 2, "a number for each of two models"
    assert translations(workers=2) == first and len(compared) == 2
    model.get_output_embeddings().weight.data.neg_()
    assert translations() != first


def test_the_cached_step_is_used_again_after_a_hook_is_removed() -> None:
    model = build("feeding")
    step = build_step(model)
    assert build_step(model) is step
    handle = model.lm_head.register_forward_hook(lambda module, given, output: -output)
    assert build_step(model) is not step
    assert_search_equals_generate(model)
    handle.remove()
    assert_search_equals_generate(model)
    assert model.search_path == "fused"


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"layer_norm": True}, hook(KERNEL), "layer_norm=True: .* a forward hook"),
        ({"cell_type": "gru", "gru_reset": "before"}, hook(KERNEL), "gru_reset='before': .* a forward hook"),
        ({"recurrent_dropout": 0.5}, hook(KERNEL), "recurrent_dropout=0.5 in training: .* a forward hook"),
        ({"weight_drop": 0.5}, hook(f"{DECODER}.layers.0"), "weight_drop=0.5 in training: .* a forward hook"),
        ({"attention_type": "normed_additive"}, hook(f"{DECODER}.attention.energy"), "energy.* a forward hook"),
    ],
)
def test_parts_that_an_option_does_not_call_are_refused(
    options: dict[str, Any], change: Callable[[Any], None], message: str
) -> None:
    model = build("feeding", **options).train()
    change(model)
    with pytest.raises(ValueError, match=message):
        model(**batch(SOURCES))


@pytest.mark.parametrize("forgets", ["heads", "batch", "target"])
def test_scores_of_another_shape_are_refused(forgets: str) -> None:
    """Two of these would broadcast, and every sentence would be read with the weights of the first."""

    class Forgetful(GeneralAttention):
        def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
            scores = super().score(query, keys, source_positions)
            return {"heads": scores[:, 0], "batch": scores[:1], "target": scores[:, :, :1]}[forgets]

    model = build("at once")
    part(model, f"{DECODER}.attention").__class__ = Forgetful
    found = {"heads": r"\(3, 5, 6\)", "batch": r"\(1, 1, 5, 6\)", "target": r"\(3, 1, 1, 6\)"}[forgets]
    with pytest.raises(ValueError, match=rf"Forgetful.score returned shape {found}: .*\(3, heads, 5, 6\)"):
        logits(model)


def test_several_heads_need_a_context_of_their_own() -> None:
    class TwoHeads(GeneralAttention):
        def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
            return super().score(query, keys, source_positions).expand(-1, 2, -1, -1)

    model = build("at once")
    part(model, f"{DECODER}.attention").__class__ = TwoHeads
    with pytest.raises(ValueError, match=r"TwoHeads: .* have 2 heads; .*context"):
        logits(model)
