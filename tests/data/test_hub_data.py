"""Data sets and metrics by name, through the loopback Hub, each in a fresh process with an empty cache."""

import json
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from tests.helpers.hub import Child
from tests.helpers.hub_store import METRICS_TOKEN, OWNER_TOKEN

EXACT = (Path(__file__).parents[1] / "helpers" / "exact_metric.py").read_text(encoding="utf-8")
PUBLISH = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(arguments["repo"], repo_type="space", space_sdk="static")
api.upload_file(
    path_or_fileobj=arguments["text"].encode(), path_in_repo=arguments["file"], repo_id=arguments["repo"],
    repo_type="space",
)
print("true")
"""
SCORE = """
from hf_rnn_seq2seq.evaluation.scores import external_score
print(json.dumps(external_score(arguments["name"], arguments["hypotheses"], arguments["references"])))
"""
STOCK = {"sacrebleu": BLEU, "chrf": CHRF, "ter": TER}
HYPOTHESES = ["the cat sat on a mat", "good morning to you all"]
REFERENCES = ["the cat sat on the mat", "good morning to you all"]


def publish_metric(child: Child, name: str, text: str) -> None:
    child.run(PUBLISH, token=METRICS_TOKEN, repo=f"evaluate-metric/{name}", file=f"{name}.py", text=text)


def score(child: Child, name: str) -> dict[str, Any]:
    return child.run(SCORE, name=name, hypotheses=HYPOTHESES, references=REFERENCES)


@pytest.mark.long
def test_a_metric_by_name(child: Child) -> None:
    publish_metric(child, "exact", EXACT)
    assert score(child, "exact") == {"exact": 0.5}


@pytest.mark.parametrize("name", STOCK)
def test_the_stock_metrics(child: Child, shared_data: Path, name: str) -> None:
    """Their scripts are not this project's: the test needs copies of evaluate's metrics/NAME/NAME.py.

    The stock `bleu` is not among them: its script has evaluate fetch a file of tensorflow/nmt from GitHub.
    """
    script = shared_data / "metrics" / name / f"{name}.py"
    if not script.is_file():
        pytest.skip(f"the stock metric is not there: {script.relative_to(shared_data)} in the optional corpora")
    publish_metric(child, name, script.read_text(encoding="utf-8"))
    expected = STOCK[name]().corpus_score(HYPOTHESES, [REFERENCES]).score
    assert score(child, name)["score"] == pytest.approx(expected, abs=1e-9)


def test_data_are_pushed_and_loaded_by_name(child: Child) -> None:
    rows = {
        "train": [{"en": f"{number} days ago", "fr": f"il y a {number} jours"} for number in range(2, 30)],
        "validation": [{"en": "a day ago", "fr": "il y a un jour"}],
    }
    pushed = child.run(
        """
        import datasets
        from huggingface_hub import HfApi
        data = datasets.DatasetDict({
            split: datasets.Dataset.from_dict({"translation": rows}) for split, rows in arguments["rows"].items()
        })
        counts = []
        for _ in range(2):
            data.push_to_hub("owner/pairs", private=True)
            counts.append(len(HfApi().list_repo_commits("owner/pairs", repo_type="dataset")))
        print(json.dumps(counts))
        """,
        token=OWNER_TOKEN,
        rows=rows,
    )
    assert pushed[0] == pushed[1] > 1, "a second identical push made a commit"
    code = """
        from hf_rnn_seq2seq.data.arguments import DataArguments
        from hf_rnn_seq2seq.data.corpus import load_corpus
        from hf_rnn_seq2seq.errors import DataError
        try:
            data = DataArguments(dataset_name="owner/pairs", source_lang="en", target_lang="fr")
            corpus = load_corpus(data, splits=("train", "validation"))
            rows = {split: [list(pair) for pair in zip(part["source"], part["target"])]
                    for split, part in corpus.splits.items()}
            print(json.dumps({"rows": rows, "name": corpus.description["name"]}))
        except DataError as error:
            print(json.dumps(str(error)))
        """
    loaded = child.run(code, token=OWNER_TOKEN)
    assert loaded["name"] == "owner/pairs"
    assert loaded["rows"] == {split: [[row["en"], row["fr"]] for row in part] for split, part in rows.items()}
    refused = child.run(code)
    assert isinstance(refused, str) and "owner/pairs" in refused and "\n" not in refused, json.dumps(refused)


@pytest.mark.long
def test_pictures_of_a_data_set_by_name(child: Child) -> None:
    """The files of a data set on the Hub are Parquet, and the pictures are in them."""
    found = child.run(
        """
        import datasets
        from PIL import Image
        colors = [(255, 0, 0), (0, 255, 0)]
        pictures = [Image.new("RGB", (4, 2), color) for color in colors]
        rows = {"picture": pictures, "captions": [["red", "a red one"], ["green"]]}
        train = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
        data = datasets.DatasetDict({"train": train})
        data.push_to_hub("owner/pictures")
        from hf_rnn_seq2seq.data.arguments import DataArguments
        from hf_rnn_seq2seq.data.corpus import load_corpus
        from hf_rnn_seq2seq.data.images import Pictures
        columns = {"source_column": "picture", "target_column": "captions"}
        named = DataArguments(task="captioning", dataset_name="owner/pictures", **columns)
        train = load_corpus(named, splits=("train",)).splits["train"]
        pixels = [Pictures.of(named).open(name).getpixel((1, 1)) for name in train["source"][:]]
        print(json.dumps([train["target"][:], pixels]))
        """,
        token=OWNER_TOKEN,
    )
    assert found == [["red", "a red one", "green"], [[255, 0, 0], [255, 0, 0], [0, 255, 0]]]
