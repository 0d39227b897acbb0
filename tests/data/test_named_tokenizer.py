"""Existing tokenizers are completed so that translations end, or refused with what is missing."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_rnn_seq2seq.data.named_tokenizer import load_tokenizer
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import start_token_id
from tests.helpers.script_runs import run

NUMBERS, NOMBRES = ("one", "two", "three", "four"), ("un", "deux", "trois", "quatre")
ROWS = [(f"{NUMBERS[i % 4]} {NUMBERS[i // 4]} apples", f"{NOMBRES[i % 4]} {NOMBRES[i // 4]} pommes") for i in range(16)]


def byte_level(*special: str, end: str | None = None, start: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text for row in ROWS for text in row), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if end or start:
        around = [(token, tokenizer.token_to_id(token)) for token in (start, end) if token]
        single = " ".join(token for token in (start, "$A", end) if token)
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    return tokenizer


def word_pieces() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NUMBERS, *NOMBRES, "apples", "pommes", "a", "##a"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def made(kind: str) -> PreTrainedTokenizerBase:
    if kind == "gpt2":
        one = "<|endoftext|>"
        return PreTrainedTokenizerFast(tokenizer_object=byte_level(one), bos_token=one, eos_token=one, unk_token=one)
    if kind == "llama":
        object_ = byte_level("<s>", "</s>", start="<s>")
        return PreTrainedTokenizerFast(
            tokenizer_object=object_, bos_token="<s>", eos_token="</s>", add_bos_token=True, add_eos_token=False
        )
    if kind == "t5":
        object_ = byte_level("<pad>", "</s>", "<unk>", end="</s>")
        return PreTrainedTokenizerFast(tokenizer_object=object_, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=word_pieces(), model_input_names=inputs, **names)


WANTED = {  # start, end, pad and unknown token, and the number of new entries
    "gpt2": ("<|endoftext|>", "<|endoftext|>", "<pad>", None, 1),
    "llama": ("<s>", "</s>", "<pad>", None, 1),
    "t5": ("<pad>", "</s>", "<pad>", "<unk>", 0),
    "bert": ("[CLS]", "[SEP]", "[PAD]", "[UNK]", 0),
}


@pytest.mark.parametrize("kind", WANTED)
def test_what_is_missing_is_added_and_saved(kind: str, tmp_path: Path) -> None:
    start, end, pad, unknown, new = WANTED[kind]
    before = made(kind)
    before.save_pretrained(tmp_path / "named")
    messages: list[str] = []
    completed = load_tokenizer(str(tmp_path / "named"), messages.append)
    assert bool(messages) == (kind != "t5")
    completed.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"), messages.append)
    assert again.get_vocab() == completed.get_vocab() and len(completed) == len(before) + new
    for one in (completed, again, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert one.convert_ids_to_tokens(start_token_id(one)) == start
        assert (one.eos_token, one.pad_token, one.unk_token) == (end, pad, unknown)
        encoded = one(["one two apples", "", "one"], text_target=["un"] * 3)
        assert set(encoded) == {"input_ids", "attention_mask", "labels"}
        for ids in (*encoded["input_ids"], *encoded["labels"]):
            assert ids[-1] == one.eos_token_id and ids[:-1].count(one.eos_token_id) == 0
        assert one.decode(encoded["input_ids"][0], skip_special_tokens=True) == "one two apples"
    names = completed.convert_ids_to_tokens(completed("one")["input_ids"])
    assert (names[0] == start) == (kind in ("llama", "bert"))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_model_learns_to_stop(kind: str, tmp_path: Path) -> None:
    made(kind).save_pretrained(tmp_path / "named")
    table = "\n".join("\t".join(row) for row in [("en", "fr"), *ROWS])
    (tmp_path / "a.tsv").write_text(table + "\n", encoding="utf-8")
    sizes = "--hidden_size 48 --encoder_hidden_size 24 --embedding_size 32 --dropout 0 --max_steps 90 --cpu_threads 1"
    words = f"--train_file {tmp_path}/a.tsv --source_lang en --target_lang fr --report_to none {sizes}"
    words += " --logging_steps 90 --learning_rate 2e-2 --per_device_train_batch_size 16 --max_new_tokens 20"
    folder = tmp_path / "run"
    ended = run("train.py", *words.split(), "--tokenizer_name_or_path", tmp_path / "named", "--output_dir", folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = model.generate(**tokenizer([row[0] for row in ROWS[:4]], return_tensors="pt", padding=True))
    assert tokenizer.batch_decode(found, skip_special_tokens=True) == [row[1] for row in ROWS[:4]]
    assert (found == tokenizer.eos_token_id).any(1).all() and found.shape[1] < 20


def test_an_incomplete_tokenizer_is_refused_with_the_mend(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=byte_level("<pad>"), pad_token="<pad>").save_pretrained(tmp_path / "end")
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    for name, message in (
        ("end", r"has no end token.*tokenizer.add_special_tokens\({'eos_token': '</s>'}\)"),
        ("slow", "ByT5Tokenizer is not a fast tokenizer"),
        ("damaged", "cannot be loaded; name a folder with a tokenizer.json"),
        ("none", "cannot be loaded; name a folder with a tokenizer.json"),
    ):
        with pytest.raises(ValueError, match=f"^tokenizer_name_or_path='{tmp_path / name}': {message}"):
            load_tokenizer(str(tmp_path / name))
