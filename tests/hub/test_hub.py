"""Push and pull through a server, each in a fresh process with an empty cache, with the package and without it."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoints import translator_files
from tests.helpers.hub import Child
from tests.helpers.hub_store import OWNER_TOKEN

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "guten morgen"


@pytest.fixture(scope="module")
def published(child: Child) -> dict[str, Any]:
    """owner/joint (main, and other weights on branch v2), owner/separate, owner/private; their logits and commits."""
    return child.run(
        """
        import os
        import hf_rnn_seq2seq
        from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
        from hf_rnn_seq2seq.data.tokenizer import build_tokenizer, source_vocabulary_size, target_vocabulary_size
        from huggingface_hub import HfApi

        source = ["guten morgen", "guten abend", "bis morgen", "schöne grüße"] * 3
        target = ["good morning", "good evening", "see you tomorrow", "best wishes"] * 3
        result, api = {}, HfApi()
        for name, joint in (("joint", True), ("separate", False), ("private", True)):
            tokenizer = build_tokenizer(source, target, vocab_size=270, min_frequency=1, joint=joint)
            torch.manual_seed(len(name))
            config = RnnSeq2SeqConfig(
                vocab_size=target_vocabulary_size(tokenizer), source_vocab_size=source_vocabulary_size(tokenizer),
                embedding_size=12, hidden_size=16, attention_type="additive",
            )
            model = RnnSeq2SeqForConditionalGeneration(config)
            repo = f"owner/{name}"
            for part in (model, tokenizer):
                part.push_to_hub(repo, private=name == "private")
            before = len(api.list_repo_commits(repo))
            for part in (model, tokenizer):
                part.push_to_hub(repo, private=name == "private")
            result[name] = {
                "logits": logits(model, tokenizer, "guten morgen"),
                "ids": ids(tokenizer),
                "files": sorted(api.list_repo_files(repo)),
                "commits": [before, len(api.list_repo_commits(repo))],
            }
            if name == "joint":
                api.create_branch(repo, branch="v2")
                torch.manual_seed(99)
                other = RnnSeq2SeqForConditionalGeneration(config)
                other.push_to_hub(repo, revision="v2")
                result["v2"] = {**result[name], "logits": logits(other, tokenizer, "guten morgen")}
        print(json.dumps(result))
        """,
        token=OWNER_TOKEN,
    )


LOAD = """
{header}
result = {{}}
for name, options in arguments["repos"].items():
    options = {{**options, {options}}}
    repo = options.pop("repo", f"owner/{{name}}")
    tokenizer = AutoTokenizer.from_pretrained(repo, **options)
    model = AutoModelForSeq2SeqLM.from_pretrained(repo, **options)
    bare = AutoModel.from_pretrained(repo, **options)
    config = AutoConfig.from_pretrained(repo, **options)
    output = model.generate(**tokenizer(arguments["sentence"], return_tensors="pt"), max_new_tokens=5)
    result[name] = {{
        "logits": logits(model, tokenizer, arguments["sentence"]),
        "ids": ids(tokenizer),
        "module": type(model).__module__,
        "bare": type(bare).__name__,
        "model_type": config.model_type,
        "text": tokenizer.batch_decode(output, skip_special_tokens=True),
    }}
print(json.dumps(result))
"""
REPOS = {
    "joint": {},
    "separate": {},
    "v2": {"repo": "owner/joint", "revision": "v2"},
    "private": {"token": OWNER_TOKEN},
}


@pytest.mark.parametrize("package", [True, False], ids=["plugin", "trust_remote_code"])
def test_round_trip(child: Child, published: dict[str, Any], package: bool) -> None:
    header = "import hf_rnn_seq2seq" if package else ""
    options = "" if package else '"trust_remote_code": True'
    # Each repository brings its own copy of the code, which takes seconds to load; this one has the tokenizer's too.
    repos = REPOS if package else {"separate": REPOS["separate"]}
    loaded = child.run(LOAD.format(header=header, options=options), package=package, repos=repos, sentence=SENTENCE)
    for name in repos:
        assert loaded[name]["logits"] == published[name]["logits"]
        assert loaded[name]["module"].startswith("hf_rnn_seq2seq." if package else "transformers_modules.")
        assert loaded[name]["ids"] == published[name]["ids"]
        assert loaded[name]["bare"] == "RnnSeq2SeqModel"
        assert loaded[name]["model_type"] == "rnn_seq2seq"
    assert not package or loaded["v2"]["logits"] != loaded["joint"]["logits"]


def test_second_identical_push_makes_no_commit(published: dict[str, Any]) -> None:
    for name in ("joint", "separate", "private"):
        before, after = published[name]["commits"]
        assert before == after >= 3, f"{name}: model and tokenizer pushed again"


def test_exactly_the_model_folder_travels(published: dict[str, Any]) -> None:
    for name in ("joint", "separate"):
        # One joint vocabulary is a plain fast tokenizer, which needs no code of ours.
        code = translator_files() | ({"tokenization_rnn_seq2seq.py"} if name == "separate" else set())
        files = set(published[name]["files"])
        strategy = {"custom_generate/generate.py"}
        assert strategy <= files
        assert {file for file in files if file.endswith(".py")} - strategy == code
        expected = {".gitattributes", "config.json", "generation_config.json", "model.safetensors"}
        expected |= {"tokenizer.json", "tokenizer_config.json"}
        expected |= {"target_tokenizer.json"} if name == "separate" else set()
        assert files - code - strategy - {"README.md"} == expected


@pytest.mark.long
def test_remote_model_trains_and_is_pushed_again(child: Child, published: dict[str, Any]) -> None:
    again = child.run(
        """
        from huggingface_hub import HfApi
        options = {"trust_remote_code": True}
        tokenizer = AutoTokenizer.from_pretrained("owner/separate", **options)
        model = AutoModelForSeq2SeqLM.from_pretrained("owner/separate", **options).train()
        batch = tokenizer(["guten abend"], text_target=["good evening"], return_tensors="pt")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for _ in range(15):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        model.push_to_hub("owner/again")
        tokenizer.push_to_hub("owner/again")
        result = {"losses": losses, "logits": logits(model, tokenizer, arguments["sentence"])}
        result["files"] = sorted(HfApi().list_repo_files("owner/again"))
        result["ids"] = ids(tokenizer)
        print(json.dumps(result))
        """,
        package=False,
        token=OWNER_TOKEN,
        sentence=SENTENCE,
    )
    assert again["losses"][-1] < 0.7 * again["losses"][0]
    assert again["files"] == published["separate"]["files"]
    assert again["ids"] == published["separate"]["ids"]
    code = LOAD.format(header="", options='"trust_remote_code": True')
    loaded = child.run(code, package=False, repos={"again": {}}, sentence=SENTENCE)
    assert loaded["again"]["logits"] == again["logits"] != published["separate"]["logits"]


@pytest.mark.long
def test_an_attention_and_a_model_of_ones_own_travel_and_train(child: Child) -> None:
    """Loaded from the Hub without this package, and pushed again from there with the same files."""
    scores = """
        given = {"input_ids": torch.tensor([[5, 6, 2]]), "decoder_input_ids": torch.tensor([[1, 4, 5]])}
        def found(model, repo):
            with torch.no_grad():
                logits = model.eval()(**given).logits.flatten().tolist()
            names = type(model).__name__, type(model.model.decoder.attention).__name__
            return [*names, logits, sorted(HfApi().list_repo_files(repo))]
    """
    pushed = child.run(
        f"""
        from huggingface_hub import HfApi
        from hf_rnn_seq2seq import RnnSeq2SeqConfig
        from hf_rnn_seq2seq.options import import_code
        {scores.strip()}
        import_code(arguments["files"])
        sizes = {{"vocab_size": 12, "embedding_size": 4, "hidden_size": 4}}
        model = AutoModelForSeq2SeqLM.from_config(RnnSeq2SeqConfig(attention_type="sharp_cosine", **sizes))
        model.push_to_hub("owner/mine")
        print(json.dumps(found(model, "owner/mine")))
        """,
        token=OWNER_TOKEN,
        files=",".join(str(ROOT / "tests" / "fixtures" / name) for name in ("my_attention.py", "my_model.py")),
    )
    assert pushed[:2] == ["SharpModel", "CosineAttention"] and {"my_attention.py", "my_model.py"} <= set(pushed[3])
    loaded, again = child.run(
        f"""
        from huggingface_hub import HfApi
        {scores.strip()}
        model = AutoModelForSeq2SeqLM.from_pretrained("owner/mine", trust_remote_code=True)
        result = [found(model, "owner/mine")]
        model.train()(**given, labels=given["decoder_input_ids"]).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.push_to_hub("owner/mine-again")
        again = AutoModelForSeq2SeqLM.from_pretrained("owner/mine-again", trust_remote_code=True)
        print(json.dumps([*result, found(again, "owner/mine-again")]))
        """,
        package=False,
        token=OWNER_TOKEN,
    )
    assert loaded == again == pushed


def test_refusals_are_clear(child: Child, published: dict[str, Any]) -> None:
    """The client itself writes the damaged files, into copies of the published repository."""
    complaints = child.run(
        """
        import pickle
        import hf_rnn_seq2seq
        from hf_rnn_seq2seq.run_directory import load_checkpoint
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub import hf_hub_download

        api, repo = HfApi(token="hf_owner"), "owner/broken"
        def read(name):
            return Path(hf_hub_download("owner/joint", name)).read_bytes()
        weights, config = read("model.safetensors"), json.loads(read("config.json"))
        tampered = bytearray(weights)
        tampered[20] ^= 0xFF
        state = {"model": torch.zeros(3)}
        torch.save(state, "pickled.bin")
        pickled = Path("pickled.bin").read_bytes()
        unknown = json.dumps({**config, "attention_type": "telepathic"}).encode()
        damage = {
            "truncated": {"model.safetensors": weights[: len(weights) // 2]},
            "tampered": {"model.safetensors": bytes(tampered)},
            "pickle_inside": {"model.safetensors": pickled},
            "pickle_beside": {"model.safetensors": None, "pytorch_model.bin": pickled},
            "unknown_attention": {"config.json": unknown},
        }
        result = {}
        for name, changes in damage.items():
            broken = f"owner/{name}"
            api.create_repo(broken)
            files = {file: read(file) for file in api.list_repo_files("owner/joint")} | changes
            api.create_commit(broken, [
                CommitOperationAdd(path_in_repo=file, path_or_fileobj=content)
                for file, content in files.items() if content is not None
            ], commit_message="damage")
            for loader in ("auto", "ours"):
                try:
                    if loader == "auto":
                        AutoModelForSeq2SeqLM.from_pretrained(broken, use_safetensors=True)
                    else:
                        load_checkpoint(broken)
                    result[f"{name} {loader}"] = None
                except Exception as error:
                    result[f"{name} {loader}"] = f"{type(error).__name__}: {error}"
        for name, repo in (("private", "owner/private"), ("absent", "owner/absent")):
            try:
                AutoModelForSeq2SeqLM.from_pretrained(repo)
            except Exception as error:
                result[name] = f"{type(error).__name__}: {error}"
        print(json.dumps(result))
        """
    )
    expected = {
        "truncated": "incomplete|too small|not fully covered|Incomplete",
        "tampered": "Safetensor|header|deserializing",
        "pickle_inside": "header|deserializing",
        "pickle_beside": "safetensors",
        "unknown_attention": "telepathic",
    }
    import re

    for name, pattern in expected.items():
        for loader in ("auto", "ours"):
            assert re.search(pattern, complaints[f"{name} {loader}"] or ""), (name, loader, complaints)
        assert complaints[f"{name} ours"].startswith("CheckpointError: ")
        assert "\n" not in complaints[f"{name} ours"]
    for name in ("private", "absent"):
        assert complaints[name].startswith("OSError") and "private" in complaints[name]


def test_without_plugin_and_without_trust_the_code_is_not_run(child: Child, published: dict[str, Any]) -> None:
    complaint = child.run(
        """
        try:
            AutoModelForSeq2SeqLM.from_pretrained("owner/joint", trust_remote_code=False)
            message = None
        except Exception as error:
            message = str(error)
        print(json.dumps([message, [name for name in sys.modules if name.startswith("transformers_modules.")]]))
        """,
        package=False,
    )
    assert "trust_remote_code" in complaint[0] and complaint[1] == []
