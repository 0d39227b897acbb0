"""Frozen weights and extended vocabularies: what is frozen stays equal, in the model and in the run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_rnn_seq2seq.data.new_tokens import extend_tokenizer, read_tokens
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.adaptation import freeze, grow_tables
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_tokenizer
from tests.helpers.models import SOURCE_VOCABULARY, VOCABULARY, batch, tiny_model
from tests.helpers.training_runs import arguments, build_loop, build_model
from tests.scripts.test_train import recipe, train

__all__ = ["recipe"]

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


# --- frozen weights


def frozen_names(model: torch.nn.Module) -> set[str]:
    return {name for name, one in model.named_parameters(remove_duplicate=False) if not one.requires_grad}


def test_patterns_freeze_what_they_name() -> None:
    model, printed = tiny_model(), []
    facts = freeze(model, ["model.encoder.embed_tokens.*", "lm_head.bias"], printed.append)
    assert frozen_names(model) == {"model.encoder.embed_tokens.weight", "lm_head.bias"}
    assert facts == {"frozen_parameters": SOURCE_VOCABULARY * 5 + VOCABULARY}
    tensors, total = len(list(model.parameters())), sum(one.numel() for one in model.parameters())
    assert printed == [f"frozen: 76 of {total:,} parameters, in 2 of {tensors} tensors"]
    assert freeze(tiny_model(), []) == {}


def test_a_tied_table_is_frozen_under_any_of_its_names() -> None:
    model = tiny_model(tie_word_embeddings=True, share_encoder_decoder_embeddings=True, readout_size=5)
    assert freeze(model, ["lm_head.weight"]) == {"frozen_parameters": VOCABULARY * 5}
    assert {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"} < frozen_names(model)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["model.encodr.*"], r"freeze='model.encodr.\*': matches no parameter; the nearest are .*model.encoder.\*"),
        (["model.encoder"], r"the nearest are .*model.encoder.\*"),
        (["lm_head.*", "lm_head.wieght"], "freeze='lm_head.wieght': .* the nearest are .*lm_head.weight"),
        (["*"], r"freeze='\*': nothing is left to train"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        freeze(tiny_model(), patterns)


@pytest.mark.parametrize("kind", ["rnn", "rnn_tied", "bart"])
def test_frozen_weights_stay_bit_for_bit_and_have_no_optimizer_state(kind: str, tmp_path: Path) -> None:
    pattern = "model.encoder.*"
    options = {"weight_decay": 0.1, "ema_decay": 0.9, "max_steps": 4}
    loop = build_loop(kind, arguments(tmp_path / "run", freeze=[pattern], **options))
    names = frozen_names(loop.state.model)
    loop.run()
    trained = [one for one in loop.state.model.parameters() if one.requires_grad]
    assert len(loop.state.plain_optimizer.state) == len(trained) > 0
    first, last = build_model(kind).state_dict(), load_file(tmp_path / "run" / "model.safetensors")
    parameters = dict(loop.state.model.named_parameters(remove_duplicate=False)).keys() & last.keys()
    assert {name for name in parameters if torch.equal(last[name], first[name])} == names & last.keys()
    assert any(name.startswith("model.encoder.") for name in names) and names < first.keys()
    assert loop.facts["frozen_parameters"] == sum(
        p.numel() for p in loop.state.model.parameters() if not p.requires_grad
    )


def test_freezing_leaves_the_other_gradients_alone() -> None:
    """Also with the fused scan and checkpointed activations, whose first layer then reads inputs without gradient."""
    for attention, checkpointing in (("additive", False), ("general", True)):
        gradients = []
        for patterns in ([], ["*.embed_tokens.*", "*attention*"]):
            model = tiny_model(attention_type=attention, encoder_layers=2, decoder_layers=2)
            if checkpointing:
                model.activation_checkpointing_enable()
            model.train()
            freeze(model, patterns)
            model(**batch()).loss.backward()
            gradients.append({name: one.grad for name, one in model.named_parameters()})
        whole, part = gradients
        left = {name for name, gradient in part.items() if gradient is not None}
        assert left == {name for name in whole if "embed_tokens" not in name and "attention" not in name}
        for name in left:
            assert torch.allclose(whole[name], part[name], atol=1e-12), name


# --- new tokens

NEW = ["frobnic", "éclairé", "京都", "<2fr>"]


def tokens(tokenizer: object, text: str, target: bool) -> list[str]:
    ids = tokenizer(**{"text_target" if target else "text": text})["input_ids"]
    named = getattr(tokenizer, "convert_target_ids_to_tokens", tokenizer.convert_ids_to_tokens)
    return (named if target else tokenizer.convert_ids_to_tokens)(ids)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word", "char"])
@pytest.mark.parametrize("joint", [True, False])
def test_new_tokens_are_whole_words_and_leave_old_text_alone(algorithm: str, joint: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(algorithm, joint=joint)
    old = [tokenizer(SOURCES)["input_ids"], tokenizer(text_target=TARGETS)["input_ids"]]
    sizes = [len(tokenizer), getattr(tokenizer, "target_vocab_size", len(tokenizer))]
    added = extend_tokenizer(tokenizer, [NEW] if joint else [["frobnic"], NEW])
    assert added == ([4] if joint else [1, 4])
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert [len(one), getattr(one, "target_vocab_size", len(one))] == [sizes[0] + added[0], sizes[1] + added[-1]]
        found = tokens(one, "<2fr> frobnic 京都市, éclairé frobnics", target=True)
        assert [name for name in found if name in NEW] == ["<2fr>", "frobnic", "京都", "éclairé"]
        assert ("frobnic" in tokens(one, "a frobnic", target=False)) and (
            "éclairé" in tokens(one, "éclairé", False)
        ) == joint
        written = one.decode(one(text_target="<2fr> frobnic éclairé 京都")["input_ids"], skip_special_tokens=True)
        assert written == "<2fr> frobnic éclairé 京都"
    again = [tokenizer(SOURCES)["input_ids"], tokenizer(text_target=TARGETS)["input_ids"]]
    assert again == old


def test_tokens_that_are_there_or_cannot_be() -> None:
    tokenizer = tiny_tokenizer("word")
    assert extend_tokenizer(tokenizer, [["three", "days", "new"]]) == [1]
    assert extend_tokenizer(tokenizer, [["new"]]) == [0]
    folded = tiny_tokenizer("bpe")
    from tokenizers import normalizers

    folded.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert extend_tokenizer(folded, [["Frobnic"]]) == [1] and "frobnic" in tokens(folded, "FROBNIC", target=False)
    byte_level = tiny_tokenizer("bpe")
    assert byte_level.convert_tokens_to_ids("Ã") is not None
    with pytest.raises(ArgumentError, match="'Ã' already names an entry of the vocabulary"):
        extend_tokenizer(byte_level, [["Ã"]])
    with pytest.raises(ArgumentError, match="'</s>' already names an entry"):
        extend_tokenizer(byte_level, [["</s>"]])
    with pytest.raises(ArgumentError, match="two files, but one vocabulary"):
        extend_tokenizer(byte_level, [["a"], ["b"]])
    with pytest.raises(ArgumentError, match="a str cannot be extended, it is not a fast one"):
        extend_tokenizer("text", [["a"]])


def test_token_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("\ufefffrobnic\r\n\n éclairé \nfrobnic\n", encoding="utf-8")
    two.write_text("\n")
    assert read_tokens(str(one)) == [["frobnic", "éclairé"]]
    assert read_tokens(f"{one}, {two}") == [["frobnic", "éclairé"], []]
    two.write_bytes(b"New York\n\xff")
    for files, message in (
        (str(tmp_path / "none"), "none': cannot be read .No such file"),
        (str(two), "two.txt': cannot be read .not UTF-8"),
        (f"{one},{one},{one}", "name one file with tokens, or two"),
    ):
        with pytest.raises(ArgumentError, match=message):
            read_tokens(files)
    two.write_text("New York\n")
    with pytest.raises(ArgumentError, match="'New York' holds white space; one token a line"):
        read_tokens(str(two))
    two.write_text("\n")
    with pytest.raises(ArgumentError, match="name one file with tokens"):
        read_tokens(str(two))


MODELS = {
    "separate": {},
    "one table": {"share_encoder_decoder_embeddings": True, "source_vocab_size": VOCABULARY},
    "tied output": {"tie_word_embeddings": True, "readout_size": 5},
    "all tied": {"share_encoder_decoder_embeddings": True, "tie_word_embeddings": True, "readout_size": 5},
}


@pytest.mark.parametrize("case", MODELS)
def test_old_words_keep_their_scores(case: str) -> None:
    model = tiny_model(**MODELS[case])
    shared = model.config.share_encoder_decoder_embeddings
    inputs = batch(sources=[[5, 7, 3, 2], [4, 6, 8, 9, 10, 2]], targets=[[6, 4, 3, 2], [9, 2]])
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    with torch.no_grad():
        before = model(**inputs).logits
    sources = VOCABULARY + 3 if shared else SOURCE_VOCABULARY + 2
    grow_tables(model, source_vocab_size=sources, vocab_size=VOCABULARY + 3)
    after = model(**inputs).logits
    assert after.shape[-1] == VOCABULARY + 3
    assert torch.allclose(after[..., :VOCABULARY], before, atol=1e-12)
    assert (model.config.source_vocab_size, model.config.vocab_size) == (sources, VOCABULARY + 3)
    assert len(model.model.encoder.embed_tokens.weight) == sources
    # New words can be read and written, and learn.
    model.train()
    model(
        input_ids=torch.tensor([[sources - 1, 2]]), labels=torch.tensor([[VOCABULARY + 2, VOCABULARY, 2]])
    ).loss.backward()
    assert model.model.decoder.embed_tokens.weight.grad[VOCABULARY + 2].abs().sum() > 0
    assert model.model.encoder.embed_tokens.weight.grad[sources - 1].abs().sum() > 0
    grow_tables(model, source_vocab_size=sources, vocab_size=VOCABULARY)
    assert model.config.vocab_size == VOCABULARY + 3, "tables never shrink"


def test_models_of_other_families_grow_too() -> None:
    model = build_model("bart").eval()
    inputs = {"input_ids": torch.tensor([[5, 7, 3, 2]]), "labels": torch.tensor([[6, 4, 2]])}
    with torch.no_grad():
        before = model(**inputs).logits
        grow_tables(model, source_vocab_size=27, vocab_size=27)
        after = model(**inputs).logits
    assert after.shape[-1] == 27 and torch.allclose(after[..., :24], before, atol=1e-6)


def test_a_run_with_new_tokens_from_a_checkpoint(recipe: str, tmp_path: Path, capsys) -> None:
    """From a checkpoint, with a frozen encoder, two vocabularies, and vectors for the new tokens only; then resumed."""
    first = tmp_path / "first"
    assert train(recipe, "--output_dir", first, "--joint_vocabulary", "false", "--source_vocab_size", 280) == 0
    (tmp_path / "words.txt").write_text("frobnic\nglimmert\n")
    numbers = " ".join(["0.5"] * 12)
    (tmp_path / "v.txt").write_text(f"frobnic {numbers}\nthe {numbers}\nin {numbers}\n")
    words = [
        "--model_name_or_path",
        first,
        "--learning_rate",
        1e-4,
        "--max_steps",
        2,
        "--extend_vocabulary",
        tmp_path / "words.txt",
    ]
    words += ["--freeze", "model.encoder.*,model.bridge.*", "--source_vectors", tmp_path / "v.txt"]
    capsys.readouterr()
    assert train(recipe, "--output_dir", tmp_path / "second", *words) == 0
    printed = capsys.readouterr().err
    assert "extend_vocabulary: 2 source and 2 new tokens" in printed and "frozen: " in printed
    assert "source_vectors: v.txt: 1 of 2 entries (50.0%) have a vector" in printed
    old, new = (AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "second")
    assert (new.config.source_vocab_size, new.config.vocab_size) == (282, old.config.vocab_size + 2)
    rows = new.model.encoder.embed_tokens.weight
    assert torch.equal(rows[:280], old.model.encoder.embed_tokens.weight)
    assert rows[tokenizer("frobnic")["input_ids"][0]].tolist() == [0.5] * 12
    kept = {
        name: one for name, one in old.state_dict().items() if name.startswith(("model.encoder.layers", "model.bridge"))
    }
    assert kept and all(torch.equal(one, new.state_dict()[name]) for name, one in kept.items())
    assert not torch.equal(old.lm_head.bias, new.lm_head.bias[: old.config.vocab_size])
    summary = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert summary["added_tokens"] == [2, 2] and summary["target_vocab_size"] == new.config.vocab_size
    more = ["--output_dir", tmp_path / "second", "--resume_from_checkpoint", "latest", "--max_steps", 3]
    assert train(tmp_path / "second" / "recipe.yaml", *more) == 0
    with pytest.raises(ArgumentError, match=r"was trained with freeze \['model.encoder.\*', 'model.bridge.\*'\]"):
        train(tmp_path / "second" / "recipe.yaml", *more[:-1], 4, "--freeze", "lm_head.*")
