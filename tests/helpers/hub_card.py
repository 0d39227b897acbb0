"""The part of the Hub's model-card validation that the tests rely on.

Rules: https://huggingface.co/docs/hub/model-cards, and the `model-index` schema of `huggingface_hub.EvalResult`.
"""

import re
from typing import Any

import yaml

LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "unknown", "other")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


class _Loader(yaml.SafeLoader):
    """YAML in which a key that occurs twice is an error, as it is on the Hub."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"duplicate key among {', '.join(keys)}")
        return super().construct_mapping(node, deep)


def card_errors(content: str) -> list[str]:
    """Return what is wrong with a card, in words; an empty list when it is valid."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    if match is None:
        return ["front matter between two lines of --- is missing"]
    try:
        data = yaml.load(match[1], Loader=_Loader)
    except yaml.YAMLError as error:
        return [f"front matter is not valid YAML: {error}"]
    if not isinstance(data, dict):
        return ["front matter must be a mapping"]
    errors = []
    if data.get("license", "unknown") not in LICENSES:
        errors.append(f'"license" must be one of {", ".join(LICENSES)}, not {data.get("license")!r}')
    languages = data.get("language") or []
    for language in languages if isinstance(languages, list) else [languages]:
        if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
            errors.append(f'"language" holds {language!r}, which is no language code')
    for name in ("tags", "datasets", "metrics"):
        values = data.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{name}" must be a list of names')
    return errors + _index_errors(data.get("model-index"))


def _index_errors(index: Any) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be a list']
    errors = []
    for position, model in enumerate(index):
        where = f'"model-index[{position}]'
        if not isinstance(model, dict) or not model.get("name"):
            errors.append(f'{where}.name" is required')
            continue
        for number, result in enumerate(model.get("results") or []):
            here = f"{where}.results[{number}]"
            if not (result.get("task") or {}).get("type"):
                errors.append(f'{here}.task.type" is required')
            for key in ("type", "name"):
                if not (result.get("dataset") or {}).get(key):
                    errors.append(f'{here}.dataset.{key}" is required')
            metrics = result.get("metrics") or []
            if not metrics:
                errors.append(f'{here}.metrics" is required')
            for metric in metrics:
                if not metric.get("type"):
                    errors.append(f'{here}.metrics.type" is required')
                if not isinstance(metric.get("value"), int | float):
                    errors.append(f'{here}.metrics.value" must be a number, not {metric.get("value")!r}')
    return errors
