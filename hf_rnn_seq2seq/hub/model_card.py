"""Model cards, rendered from the files of a run directory, so that no number in a card is typed by hand.

`read_facts` collects the facts and `render` writes the card. The template is `model_cards/template.md`; the sentences
are in `card_text.py`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq.data.arguments import OF_TASKS, PATH_OPTIONS
from hf_rnn_seq2seq.errors import CheckpointError
from hf_rnn_seq2seq.evaluation.describe import architecture
from hf_rnn_seq2seq.evaluation.scores import OF_WORDS
from hf_rnn_seq2seq.hub import card_text
from hf_rnn_seq2seq.run_directory import ATTENTION, LEARNING_CURVE, read_json, read_summary, recipe_options

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATE = "model_card_template.md"
METRICS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "chrfpp": "chrF++",
    "char_bleu": "character BLEU",
    "ter": "TER",
    "wer": "WER",
    "cer": "CER",
    "exact_match": "exact match",
    "sequence_error": "WER, whole outputs",
    "symbol_error": "PER",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "sentence_pointing": "texts with most weight on the sentence that decides (%)",
    "pointing": "words that look at what they name (%)",
    "nats_per_row": "nats a row (lower is better)",
    "finished": "writings that end (%)",
    "nats_per_character": "nats per character",
    "bits_per_character": "bits per character",
}
# The options in the table of a card, in this order; recipe.yaml has all of them.
TRAINING_OPTIONS = (
    "per_device_train_batch_size",
    "train_batch_tokens",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "ema_decay",
    "mixed_precision",
    "metric_for_best_model",
    "seed",
    "tokenizer_algorithm",
    "source_tokenizer_algorithm",
    "target_tokenizer_algorithm",
    "source_unicode_form",
    "target_unicode_form",
    "joint_vocabulary",
)
ARCHITECTURE_FIELDS = (
    "vocab_size",
    "source_vocab_size",
    "embedding_size",
    "hidden_size",
    "encoder_hidden_size",
    "encoder_layers",
    "decoder_layers",
    "skip_connections",
    "cell_type",
    "bidirectional",
    "context",
    "attention_type",
    "attention_window",
    "attention_order",
    "input_feeding",
    "bridge",
    "readout",
    "mixture_components",
    "window_components",
    "alphabet",
    "offset_deviation",
    "point_tolerance",
    "dropout",
    "label_smoothing",
    "tie_word_embeddings",
    "share_encoder_decoder_embeddings",
    "pooling",
    "attention_hops",
    "hop_penalty",
    "classifier_size",
)
TASKS = {
    "translation": ("translation", "Translation", "translation"),
    "captioning": ("image-to-text", "Image captioning", "image-text-to-text"),
    "classification": ("text-classification", "Text classification", "text-classification"),
    "handwriting": ("handwriting", "Handwriting", None),  # the Hub has no task of this kind
    "text": ("text-generation", "Text generation", "text-generation"),
}  # of the Hub: the task, its title, and the pipeline

# An absolute path of at least two folders at the start of a word; the group is its last name.
ABSOLUTE_PATH = re.compile(r"""(?:(?<=[\s,='"(])|^)(?:[A-Za-z]:)?[/\\](?:[^\s/\\,'"]+[/\\])+([^\s/\\,'"]*)""")
# A word of a command that a shell needs in quotes, such as one with a space: perhaps --option=, then an absolute path.
QUOTED_PATH = re.compile(r"""'((?:--\w+=)?)((?:[A-Za-z]:)?[/\\][^']*)'""")
ROOT = re.compile(r"(?:[A-Za-z]:)?[/\\]")


def read_facts(
    directory: str | os.PathLike[str], *, repo_id: str | None = None, license: str | None = None
) -> dict[str, Any]:
    """Collects the facts of a run directory as a mapping of JSON values for `render`.

    Args:
        directory: a run directory. config.json is required; summary.json, recipe.yaml and pictures are optional.
        repo_id: `user/name` on the Hub, for the usage example.
        license: of the weights, by its name on the Hub; only their owner can choose it.

    Raises:
        CheckpointError: a file is missing or not readable.
    """
    path = Path(directory)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: has no config.json; name a directory that training or save_pretrained wrote")
    facts = {
        "repo_id": repo_id or f"user/{path.resolve().name}",
        "config": read_json(path / "config.json"),
        "summary": read_summary(path),
        "recipe": recipe_options(path),
        "pictures": [name for name in (ATTENTION, LEARNING_CURVE) if (path / name).is_file()],
    }
    return strip_local_paths(facts | ({"license": license} if license else {}))


def render(facts: Mapping[str, Any]) -> str:
    """Renders the model card.

    Args:
        facts: as `read_facts` returns them; `config` is required.

    Returns:
        Markdown. Its front matter has language, license, library, tags and the measured results (`model-index`).

    Raises:
        CheckpointError: `config` is missing.
    """
    from huggingface_hub import ModelCard

    if not facts.get("config"):
        raise CheckpointError("facts: 'config' is missing; `read_facts` collects it")
    config, summary, recipe = facts["config"], facts.get("summary") or {}, facts.get("recipe") or {}
    corpus = _corpus(summary, recipe)
    results = list(_results(summary))
    name = facts.get("repo_id", "user/model").split("/")[-1]
    preset = recipe.get("preset")
    card = ModelCard.from_template(
        card_data=_metadata(facts, corpus, results, name),
        template_path=str(template_path()),
        name=name,
        repo_id=facts.get("repo_id", "user/model"),
        task=recipe.get("task") or "translation",
        of_words=card_text.reads_words(recipe),
        deletion=summary.get("deletion"),
        reads_text=bool(config.get("window_components")),
        text=summary.get("sample"),
        sentence=card_text.opening_sentence(config, summary, corpus, recipe),
        results=results,
        pictures=facts.get("pictures") or [],
        samples=card_text.samples(summary),
        architecture=f"{architecture(config)}{f' Preset `{preset}`.' if preset else ''}",
        config_rows=_rows(config, _fields_of(config)),
        data_sentence=card_text.data_sentence(corpus),
        data_rows=card_text.data_rows(corpus, summary),
        training_sentence=card_text.training_sentence(summary),
        training_rows=_rows(recipe, _options_of(recipe)),
        source_lang=corpus.get("source_lang") or "source",
        target_lang=corpus.get("target_lang") or "target",
        software=card_text.software(summary, config),
    )
    return str(card).rstrip() + "\n"


def render_again(folder: str | os.PathLike[str]) -> list[Path]:
    """Renders the card of each facts file NAME.json in `folder` into NAME.md; returns the paths of the cards."""
    from hf_rnn_seq2seq.files import write_atomically

    cards = []
    for path in sorted(Path(folder).glob("*.json")):
        cards.append(path.with_suffix(".md"))
        write_atomically(cards[-1], render(read_json(path)))
    return cards


def strip_local_paths(value: object) -> Any:
    """A copy in which each absolute path, also inside a command or a list, is replaced by its last name."""
    if isinstance(value, Mapping):
        return {
            key: _last_names(item) if key in PATH_OPTIONS and isinstance(item, str) else strip_local_paths(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [strip_local_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return ABSOLUTE_PATH.sub(r"\1", QUOTED_PATH.sub(lambda found: f"'{found[1]}{_last_names(found[2])}'", value))


def _last_names(paths: str) -> str:
    """The last name of each absolute path of a list with commas; a path may hold spaces."""
    return ",".join(re.split(r"[/\\]", part)[-1] if ROOT.match(part) else part for part in paths.split(","))


def template_path() -> Path:
    """The card template: in a checkout `model_cards/template.md`, which a wheel contains in this folder."""
    here = Path(__file__).resolve()
    for path in (here.parents[2] / "model_cards" / "template.md", here.with_name(TEMPLATE)):
        if path.is_file():
            return path
    raise CheckpointError(f"{here.with_name(TEMPLATE)}: the card template is missing; install the package again")


def _fields_of(config: Mapping[str, Any]) -> list[str]:
    """The fields of the table that the model reads."""
    windowed = config.get("attention_type") == "window" or config.get("model_type") == "rnn_handwriting"
    return [name for name in ARCHITECTURE_FIELDS if windowed or name != "window_components"]


def _options_of(recipe: Mapping[str, Any]) -> list[str]:
    """The options of the table that the run reads."""
    task = recipe.get("task") or "translation"
    names = [name for name in TRAINING_OPTIONS if task in OF_TASKS.get(name, (task,))]
    if all(recipe.get(f"{side}_tokenizer_algorithm") for side in ("source", "target")):
        names.remove("tokenizer_algorithm")
    return names


def _rows(options: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, str]]:
    return [(f"`{name}`", card_text.table_cell(options[name])) for name in names if options.get(name) is not None]


def _corpus(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What is known about the data: from the description in the summary, else from the options of the run."""
    described = summary.get("corpus") or summary.get("data") or {}
    named = {
        "name": recipe.get("dataset_name") or _file_name(recipe.get("train_file")),
        "config": recipe.get("dataset_config_name"),
        "source_lang": recipe.get("source_lang"),
        "target_lang": recipe.get("target_lang"),
    }
    corpus = {key: value for facts in (named, described) for key, value in facts.items() if value is not None}
    pair = str(corpus.get("config", "")).split("-")
    if corpus.get("name") == "cldr" and len(pair) == 2:
        corpus = {"source_lang": pair[0], "target_lang": pair[1], **corpus}
    return corpus


def _file_name(option: str | None) -> str | None:
    return ", ".join(Path(part).name for part in option.split(",")) if option else None


def _results(summary: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    signatures = summary.get("signatures") or {}
    for key in OF_WORDS.get(summary.get("best_metric_name"), METRICS):
        name, value = METRICS[key], summary.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            signature = signatures.get(key) or (summary.get("signature") if key == "bleu" else None)
            beams = summary.get("num_beams")
            search = f"beam {beams}" if beams and beams > 1 else "greedy" if beams == 1 else None
            signed = f"`{card_text.table_cell(signature)}`" if signature else None
            bag = summary.get("bag_of_words") if key == "accuracy" else None
            baseline = f"bag of words and bigrams: {bag:.2f}" if isinstance(bag, int | float) else None
            carried = "state carried over the whole text" if key.endswith("_character") else None
            how = ", ".join(part for part in (search, signed, baseline, carried) if part)
            interval = summary.get(f"{key}_interval")
            yield {
                "type": key,
                "name": name,
                "value": round(float(value), 4),
                "shown": f"{value:.{3 if key.endswith('_character') else 2}f}"
                + (f" ± {interval:.2f}" if isinstance(interval, int | float) else ""),
                "split": summary.get("split") or "test",
                "how": how,
            }


def _metadata(
    facts: Mapping[str, Any], corpus: Mapping[str, Any], results: list[dict[str, Any]], name: str
) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    languages = [str(corpus[key]).replace("_", "-") for key in ("source_lang", "target_lang") if corpus.get(key)]
    config = facts["config"]
    task, title, pipeline = TASKS[(facts.get("recipe") or {}).get("task") or "translation"]
    tags = ["rnn", str(config.get("cell_type", "rnn"))]
    kind = {"text-classification": [], "text-generation": [], "handwriting": ["handwriting"]}.get(task, ["seq2seq"])
    tags = [*kind, *tags]
    tags += ["attention"] if "attention" in (config.get("context"), config.get("pooling")) else []
    data_name = " ".join(str(corpus[key]) for key in ("name", "config") if corpus.get(key)) or "unknown"
    evaluated = [
        EvalResult(
            task_type=task,
            task_name=title,
            dataset_type=str(corpus.get("name", "unknown")),
            dataset_name=data_name,
            dataset_split=result["split"],
            metric_type=result["type"],
            metric_name=result["name"],
            metric_value=result["value"],
        )
        for result in results
    ]
    return ModelCardData(
        language=languages or None,
        license=facts.get("license"),
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=tags,
        # The Hub links a data set by `user/name`; others are described in the text.
        datasets=[corpus["name"]] if str(corpus.get("name", "")).count("/") == 1 else None,
        metrics=[result["type"] for result in results] or None,
        model_name=name if evaluated else None,
        eval_results=evaluated or None,
    )
