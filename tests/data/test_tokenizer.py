"""Tokenizers: round trips, two vocabularies, saving and loading."""

import json
import pickle
import subprocess
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
)

from hf_rnn_seq2seq import RnnSeq2SeqConfig
from hf_rnn_seq2seq.data.arguments import ALGORITHMS
from hf_rnn_seq2seq.data.tokenizer import (
    LOSSLESS,
    SPECIAL_TOKENS,
    build_tokenizer,
    source_tokens,
    source_vocabulary_size,
    target_tokens,
    target_vocabulary_size,
    train_tokenizer,
)
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqJointTokenizer, RnnSeq2SeqTokenizer
from hf_rnn_seq2seq.run_directory import tokenizer_hash
from tests.helpers import warm

SOURCES = ["the cat sat on the mat .", "a dog 's 12 houses", "hello world , hello", "thé à 3 h"] * 20
TARGETS = ["le chat est assis", "un chien et 12 maisons", "bonjour à tous les amis", "日本語 のテスト"] * 20
EVERY = list(product(ALGORITHMS, (True, False)))


def build(algorithm="bpe", joint=True, **options):
    return build_tokenizer(SOURCES, TARGETS, algorithm=algorithm, joint=joint, **{"vocab_size": 400, **options})


BUILT = {(algorithm, joint): build(algorithm, joint) for algorithm, joint in EVERY}


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@pytest.mark.parametrize("algorithm", LOSSLESS)
@given(text=st.text())
@example(text="  two  spaces ")
@example(text="</s> <s> <unk> <pad>")
@example(text="é e\u0301 \u202f\u200d\ufeff\x00")
@example(text="日本語 한국어 👩\u200d👩\u200d👧 🇫🇷")
@example(text="<0x41> Ġ▁##x\r\n\t")
def test_any_unicode_text_is_restored(algorithm, joint, text):
    tokenizer = BUILT[algorithm, joint]
    encoded = tokenizer(text, text_target=text)
    assert tokenizer.decode(encoded["labels"], skip_special_tokens=True) == text
    decode_source = getattr(tokenizer, "decode_source", tokenizer.decode)
    assert decode_source(encoded["input_ids"], skip_special_tokens=True) == text
    assert encoded["labels"].count(2) == 1  # a text cannot end itself


def test_tokenized_words_are_restored_one_for_one():
    tokenizer = build("word", min_frequency=2, lowercase=True, vocab_size=1000)
    text = "the cat 's 12 houses , hello ."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.tokenize("The CAT don't") == ["the", "cat", "<unk>"]


@pytest.mark.parametrize(("algorithm", "joint"), EVERY)
def test_special_tokens_have_the_first_ids_on_both_sides(algorithm, joint):
    tokenizer = BUILT[algorithm, joint]
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS.values()] == [0, 1, 2, 3]
    encoded = tokenizer("the cat", text_target="le chat")
    assert encoded["input_ids"][-1] == encoded["labels"][-1] == tokenizer.eos_token_id == 2
    assert tokenizer.bos_token_id not in encoded["input_ids"] + encoded["labels"]
    assert set(encoded) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize(("algorithm", "joint"), EVERY)
def test_what_is_saved_is_what_is_loaded(algorithm, joint, tmp_path):
    saved = BUILT[algorithm, joint]
    saved.save_pretrained(tmp_path)
    # Not registered here: the folder of a joint vocabulary must load without a line of ours.
    loaded = (AutoTokenizer if joint else RnnSeq2SeqTokenizer).from_pretrained(tmp_path)
    assert dict(loaded(SOURCES, text_target=TARGETS)) == dict(saved(SOURCES, text_target=TARGETS))
    labels = loaded(text_target=TARGETS)["input_ids"]
    assert loaded.batch_decode(labels, skip_special_tokens=True) == saved.batch_decode(labels, skip_special_tokens=True)
    assert loaded.model_max_length == 512
    assert target_vocabulary_size(loaded) == target_vocabulary_size(saved)
    assert source_vocabulary_size(loaded) == source_vocabulary_size(saved)
    assert tokenizer_hash(loaded) == tokenizer_hash(saved)
    written_out = loaded(text_target="le </s> <pad> <s> chat")["input_ids"]
    assert written_out.count(2) == 1 and 0 not in written_out and 1 not in written_out


def test_merges_survive_the_reload(tmp_path):
    build("bpe", joint=False).save_pretrained(tmp_path)
    loaded = RnnSeq2SeqTokenizer.from_pretrained(tmp_path)
    for name in ("tokenizer.json", "target_tokenizer.json"):
        assert len(json.loads((tmp_path / name).read_text(encoding="utf-8"))["model"]["merges"]) > 10
    assert loaded.tokenize("hello") == ["hello"]
    assert loaded.convert_target_ids_to_tokens(loaded(text_target="bonjour")["input_ids"]) == ["bonjour", "</s>"]


def test_two_vocabularies_keep_to_their_sides():
    tokenizer = build("word", joint=False, vocab_size=30, source_vocab_size=12)
    assert len(tokenizer) == source_vocabulary_size(tokenizer) == 12
    assert tokenizer.target_vocab_size == target_vocabulary_size(tokenizer) == len(tokenizer.get_target_vocab()) < 30
    assert "chat" in tokenizer.get_target_vocab() and "chat" not in tokenizer.get_vocab()
    encoded = tokenizer(["hello the"], text_target=["le chat"])
    assert source_tokens(tokenizer, encoded["input_ids"][0]) == ["hello", "the", "</s>"]
    assert target_tokens(tokenizer, encoded["labels"][0]) == ["le", "chat", "</s>"]
    assert tokenizer.batch_decode(encoded["labels"], skip_special_tokens=True) == ["le chat"]
    assert tokenizer.decode_source(encoded["input_ids"][0], skip_special_tokens=True) == "hello the"


def test_a_failed_target_leaves_the_source_its_vocabulary():
    tokenizer = build("word", joint=False)
    before = tokenizer("hello the")["input_ids"]
    with pytest.raises(ValueError):
        tokenizer("hello", text_target=[1, 2])
    assert "hello" in tokenizer.get_vocab() and "chat" not in tokenizer.get_vocab()
    assert tokenizer("hello the")["input_ids"] == before


def test_separate_vocabularies_need_their_files_and_the_same_special_ids(tmp_path):
    build("bpe", joint=False).save_pretrained(tmp_path)
    (tmp_path / "target_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"target_tokenizer\.json is missing"):
        RnnSeq2SeqTokenizer.from_pretrained(tmp_path)
    source, target = (train_tokenizer(SOURCES, algorithm="word") for _ in range(2))
    shifted = json.loads(target.to_str())
    shifted["model"]["vocab"] |= {"<s>": 2, "</s>": 1}
    shifted["added_tokens"] = []
    shifted["post_processor"] = None
    with pytest.raises(ValueError, match="special token '<s>' has id 1 in the source vocabulary and 2 in the target"):
        RnnSeq2SeqTokenizer(
            tokenizer_object=source,
            target_tokenizer_object=type(target).from_str(json.dumps(shifted)),
            **SPECIAL_TOKENS,
        )


def test_both_kinds_travel_to_a_worker_process():
    for joint in (True, False):
        copy = pickle.loads(pickle.dumps(BUILT["bpe", joint]))
        assert dict(copy("the cat", text_target="le chat")) == dict(
            BUILT["bpe", joint]("the cat", text_target="le chat")
        )


def test_two_vocabularies_load_by_auto_tokenizer_registered_and_with_remote_code(tmp_path):
    tokenizer = build("bpe", joint=False)
    tokenizer.save_pretrained(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    assert "tokenization_rnn_seq2seq.RnnSeq2SeqTokenizer" in config["auto_map"]["AutoTokenizer"]
    text = {"text": "the cat", "text_target": "le chat"}
    script = (
        "import sys, json\n"
        "from transformers import AutoTokenizer\n"
        "folder, text, remote = json.loads(sys.argv[1])\n"
        "if not remote: import hf_rnn_seq2seq\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)\n"
        "assert remote == (type(tokenizer).__module__.startswith('transformers_modules'))\n"
        "print(json.dumps([type(tokenizer).__name__, dict(tokenizer(**text))]))\n"
    )
    for remote in (True, False):
        words = [*warm.python(package=not remote), "-c", script, json.dumps([str(tmp_path / "run"), text, remote])]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == ["RnnSeq2SeqTokenizer", dict(tokenizer(**text))]


def test_a_checkpoint_with_a_joint_vocabulary_keeps_its_plain_tokenizer(tmp_path):
    RnnSeq2SeqConfig(vocab_size=400, embedding_size=8, hidden_size=8).save_pretrained(tmp_path)
    BUILT["bpe", True].save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is RnnSeq2SeqJointTokenizer
    assert dict(loaded("the cat")) == dict(BUILT["bpe", True]("the cat"))
    BUILT["bpe", False].save_pretrained(tmp_path)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), RnnSeq2SeqTokenizer)


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@pytest.mark.parametrize("algorithm", ["bpe", "word"])
def test_tokens_added_later_are_recognized_in_text_and_the_first_ones_are_not(algorithm, joint, tmp_path):
    tokenizer = build(algorithm, joint)
    sizes = source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<2fr>"], "sep_token": "<sep>"}) == 2
    assert tokenizer.add_tokens(["<2de>", "chat"]) >= 1  # one side may know the last as a word already
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert type(one) is type(tokenizer)
        grown = source_vocabulary_size(one) - sizes[0], target_vocabulary_size(one) - sizes[1]
        assert grown[0] == grown[1] >= 3  # so that one number says the sizes of both
        text = "<2fr> hello <sep> <2de> </s> chat"
        source, target = (one(**{side: text})["input_ids"] for side in ("text", "text_target"))
        new = ["<2fr>", "<sep>", "<2de>", "chat"]
        for named, ids in ((source_tokens, source), (target_tokens, target)):
            assert [name.strip() for name in named(one, ids) if name.strip() in new] == new
            assert ids.count(2) == 1
        assert one.sep_token == "<sep>" and one.extra_special_tokens == ["<2fr>"]
        written = one.decode(target, skip_special_tokens=True)
        assert "<2de>" in written and "<2fr>" not in written and "<sep>" not in written
        assert "<2fr>" in one.decode(target)
        assert one.convert_ids_to_tokens(source, skip_special_tokens=True).count("<2fr>") == 0
    if joint:  # what a plain tokenizer makes of the same files
        plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        assert type(plain) is not type(tokenizer) and "<2fr>" in plain.tokenize(text)


def test_a_shared_special_token_cannot_get_two_ids():
    tokenizer = build("word", joint=False, vocab_size=30, source_vocab_size=12)
    with pytest.raises(ValueError, match=r"special token '\[PAD\]' has id 12 in the source vocabulary and \d+ in the"):
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})


@pytest.mark.parametrize("joint", [True, False])
def test_the_collator_of_transformers_takes_both_kinds(joint):
    tokenizer = BUILT["bpe", joint]
    size = max(source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer))
    config = BartConfig(vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16)
    config.update({"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2})
    rows = [tokenizer(source, text_target=target) for source, target in zip(SOURCES[:3], TARGETS[:3], strict=True)]
    batch = DataCollatorForSeq2Seq(tokenizer, BartForConditionalGeneration(config))(rows)
    assert batch["labels"].shape[0] == batch["input_ids"].shape[0] == 3
    longest = max(range(3), key=lambda i: len(rows[i]["labels"]))
    assert batch["labels"][longest].tolist() == rows[longest]["labels"]
    assert (batch["labels"] == -100).any() and (batch["input_ids"] == 0).any()


@pytest.mark.parametrize("joint", [True, False])
def test_batches_of_text_are_padded_on_the_right(joint):
    batch = BUILT["bpe", joint](["the", "the cat sat"], padding=True, return_tensors="pt")
    assert batch["input_ids"][0, -1] == 0 and batch["attention_mask"][0].tolist()[:2] == [1, 1]
    assert batch["attention_mask"][0, -1] == 0


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens_in_the_training_text_take_no_entry(algorithm, lowercase):
    """Many corpora contain `<unk>`; counted as a word, it would get a second id beyond the vocabulary."""
    text = ["a <unk> b <UNK> </s>", "<pad> b"] * 3
    tokenizer = train_tokenizer(text, algorithm=algorithm, vocab_size=400, min_frequency=1, lowercase=lowercase)
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "<s>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))
    assert tokenizer.encode("a b").ids[-1] == 2 and 3 not in tokenizer.encode("a b").ids


def test_lower_case_and_frequency():
    tokenizer = train_tokenizer(["Aa b b c"], algorithm="word", lowercase=True, min_frequency=2)
    assert set(tokenizer.get_vocab()) == {*SPECIAL_TOKENS.values(), "b"}
    characters = train_tokenizer(["aab"], algorithm="char", min_frequency=2)
    assert "a" in characters.get_vocab() and "b" not in characters.get_vocab()
    assert characters.decode(characters.encode("abc").ids) == "abc"
    assert len(train_tokenizer(["abcdefg" * 3], algorithm="char", vocab_size=262).get_vocab()) == 262


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "bpee"}, "algorithm='bpee': allowed are bpe, unigram, wordpiece, word, char, letter"),
        (
            {"source_unicode_form": "nfx", "target_unicode_form": "nfx"},
            "unicode_form='nfx': allowed are nfc, nfd, nfkc, nfkd",
        ),
        ({"vocab_size": 200}, "vocab_size=200: bpe needs at least 260"),
        ({"algorithm": "word", "vocab_size": 4}, "vocab_size=4: word needs at least 5"),
        ({"min_frequency": 0}, "min_frequency=0: must be at least 1"),
        ({"model_max_length": 0}, "model_max_length=0: must be at least 1"),
        ({"source_vocab_size": 300}, "source_vocab_size=300: a joint vocabulary has one size"),
    ],
)
def test_a_bad_setting_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_no_text_is_an_error():
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        train_tokenizer([])


WORDS = ["V;PST\twalk", "V;3+SG\tgo", "chào anh", "각나"]
PHONES = ["w ɔ̃ k t", "g o z", "ʨ aː w", "k a k n a"]


def letters(**options):
    sides = {"source_algorithm": "letter", "target_algorithm": "word", "joint": False, "min_frequency": 1}
    return build_tokenizer(WORDS, PHONES, **sides | options)


def test_letters_in_and_whole_symbols_out():
    """The vocabulary has the seen letters and no bytes; features before the tab are tokens, distinct from letters."""
    tokenizer = letters()
    seen = {"V\t", "PST\t", "3\t", "SG\t", *"walkgochàoanh각나", " ", *SPECIAL_TOKENS.values()}
    assert set(tokenizer.get_vocab()) == seen
    assert set(tokenizer.get_target_vocab()) == {*" ".join(PHONES).split(), *SPECIAL_TOKENS.values()}
    read = lambda text: tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[:-1]  # noqa: E731
    assert read("walk") == [*"walk"]
    assert read("V;3+PST\tlaw") == ["V\t", "3\t", "PST\t", *"law"]
    assert read("\t;V;;PST\tlaw") == read("V+PST\tlaw") == ["V\t", "PST\t", *"law"]
    assert read("a;w") == ["a", "<unk>", "w"] and read("NEW\ta") == ["<unk>", "a"]
    ids = tokenizer(text_target="w  ɔ̃ z")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "w ɔ̃ z"
    assert tokenizer.decode_source(tokenizer("chào anh").input_ids, skip_special_tokens=True) == "chào anh"


@pytest.mark.parametrize("form", ["nfd", "nfkd"])
def test_a_unicode_form_is_read_and_undone_in_outputs(form, tmp_path):
    """The model reads Korean as letters (jamo), outputs are syllables; also after saving, and for undecomposed text."""
    options = {"source_algorithm": "letter", "target_algorithm": "letter", "joint": False, "min_frequency": 1}
    forms = {"source_unicode_form": form, "target_unicode_form": form}
    tokenizer = build_tokenizer(["각나"], ["각나"], **options, **forms)
    assert len(tokenizer("각").input_ids) == 4  # three jamo and the end
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert one.decode(one(text_target="나각")["input_ids"], skip_special_tokens=True) == "나각"
    # Composing would change this target, which is decomposed in the data itself.
    kept = build_tokenizer(["a"], ["e\u0301", "é"], **options, **forms)
    assert kept.decode(kept(text_target="é")["input_ids"], skip_special_tokens=True) == "e\u0301"
    with pytest.raises(ValueError, match="one vocabulary has one of them; choose joint_vocabulary=False"):
        build_tokenizer(["a"], ["a"], source_unicode_form="nfd")
