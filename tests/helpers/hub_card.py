"""The part of the Hub's model-card validation that the tests rely on, for front matter as `yaml.dump` writes it.

Rules: https://huggingface.co/docs/hub/model-cards, and the `model-index` schema of `huggingface_hub.EvalResult`.
"""

import re
from typing import Any

LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "unknown", "other")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def card_errors(content: str) -> list[str]:
    """Return what is wrong with a card, in words; an empty list when it is valid."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    if match is None:
        return ["front matter between two lines of --- is missing"]
    try:
        data = parse_yaml(match[1])
    except ValueError as error:
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


def parse_yaml(text: str) -> Any:
    """Read block mappings, block lists and scalars; anchors, flow collections and multi-line scalars are refused."""
    lines = []
    for line in text.split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            if "\t" in line[: len(line) - len(line.lstrip())]:
                raise ValueError("indentation by tabs")
            lines.append((len(line) - len(line.lstrip()), line.strip()))
    value, rest = _block(lines, 0)
    if rest != len(lines):
        raise ValueError(f"unexpected line {lines[rest][1]!r}")
    return value


def _block(lines: list[tuple[int, str]], start: int) -> tuple[Any, int]:
    if start >= len(lines):
        return None, start
    indent, first = lines[start]
    if first == "-" or first.startswith("- "):
        return _list(lines, start, indent)
    return _mapping(lines, start, indent)


def _list(lines: list[tuple[int, str]], start: int, indent: int) -> tuple[list[Any], int]:
    items = []
    while start < len(lines) and lines[start][0] == indent and re.match(r"-( |$)", lines[start][1]):
        rest = lines[start][1][1:].lstrip()
        if not rest:
            value, start = _block(lines, start + 1)
        elif _key(rest):
            # `- key: value` opens a mapping two columns further in.
            lines[start] = (indent + 2, rest)
            value, start = _mapping(lines, start, indent + 2)
        else:
            value, start = _scalar(rest), start + 1
        items.append(value)
    return items, start


def _mapping(lines: list[tuple[int, str]], start: int, indent: int) -> tuple[dict[str, Any], int]:
    mapping: dict[str, Any] = {}
    while start < len(lines) and lines[start][0] == indent and not re.match(r"-( |$)", lines[start][1]):
        found = _key(lines[start][1])
        if found is None:
            raise ValueError(f"no key in {lines[start][1]!r}")
        key, rest = found
        if key in mapping:
            raise ValueError(f"duplicate key {key!r}")
        start += 1
        if rest:
            mapping[key] = _scalar(rest)
        elif start < len(lines) and (
            lines[start][0] > indent or (lines[start][0] == indent and lines[start][1].startswith("-"))
        ):
            mapping[key], start = _block(lines, start)
        else:
            mapping[key] = None
    return mapping, start


def _key(text: str) -> tuple[str, str] | None:
    match = re.match(r"""("[^"]*"|'[^']*'|[^\s"'#][^#]*?):(?: +(.*))?$""", text)
    return (match[1].strip("\"'"), (match[2] or "").strip()) if match else None


def _scalar(text: str) -> Any:
    if text[0] in "\"'":
        if len(text) < 2 or text[-1] != text[0]:
            raise ValueError(f"unterminated string {text!r}")
        return text[1:-1]
    if text[0] in "{&*!|>%@`" or (text[0] == "[" and text != "[]"):
        raise ValueError(f"unsupported scalar {text!r}")
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text):
        return float(text)
    return None if text in ("null", "~") else [] if text == "[]" else text
