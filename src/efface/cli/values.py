"""From words on the command line and a YAML file to one set of values, and from results to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from efface.errors import ConfigError, nearest
from efface.run.progress import SHOW

POSITIONAL = {"method": "efface forget METHOD", "recipe": "efface learn RECIPE", "measure": "efface measure MEASURE",
              "target": "efface audit RUN"}  # fmt: skip
"""Keys that are arguments, not options, with the place where they stand."""
PROMPT, MODEL = "prompt", ("revision", "dtype", "device_map", "adapter", "trust_remote_code", "factory", "head")
PREDICTORS = ("classifier", "regressor")
"""Kinds of model whose data are labelled rows."""


def parse_pairs(words: Iterable[str] | None) -> dict[str, Any]:
    """`key=value` words to values; `a.b=c` nests, values are read as YAML scalars or lists.

    Raises:
        ConfigError: a word without `=`.
    """
    found: dict[str, Any] = {}
    for word in words or ():
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}'", "key=value", "write settings as key=value, for example learning_rate=1e-5")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"'{word}'", "a plain value", "quote special characters") from error
        place = found
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{word}'", f"no value for '{part}' itself", "set either the whole or its parts")
        place[last] = value
    return found


def read_config(path: Path | None) -> dict[str, Any]:
    """A YAML file of keys.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read --config {path}: {error.strerror or error}", "a YAML file", "check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--config {path} is not YAML ({str(error).splitlines()[0]})", "key: value lines", "mend the file"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"--config {path}: {type(values).__name__}", "key: value lines", "mend the file")
    return values


def merge(config: Path | None, options: Mapping[str, Any], words: Iterable[str] | None) -> dict[str, Any]:
    """File, then options, then words: the later wins. Options that were not given are left out."""
    values = read_config(config)
    given = {key: value for key, value in options.items() if value is not False and value not in (None, (), [], {})}
    values.update(given)
    for key, value in parse_pairs(words).items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            values[key] = {**values[key], **value}
        else:
            values[key] = value
    return values


def take(values: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Remove and return the keys that are options of the command."""
    return {key: values.pop(key) for key in list(known) if key in values}


def need(values: Mapping[str, Any], key: str, what: str) -> Any:
    """A value that must be there.

    Raises:
        ConfigError: it is not; says which option gives it.
    """
    if values.get(key) in (None, "") and key in POSITIONAL:
        raise ConfigError(f"no {key}", what, f"name it ({POSITIONAL[key]} ...) or give '{key}' in --config")
    if values.get(key) in (None, ""):
        raise ConfigError(
            f"no --{key.replace('_', '-')}", what, f"give it with --{key.replace('_', '-')} or in --config"
        )
    return values[key]


def named(pairs: Any, option: str) -> dict[str, str]:
    """`name=path` words (or a mapping from a config file) to a mapping.

    Raises:
        ConfigError: a word without `=`.
    """
    if isinstance(pairs, Mapping):
        return {str(name): str(path) for name, path in pairs.items()}
    found = {}
    for word in pairs or ():
        name, equals, path = str(word).partition("=")
        if not equals:
            raise ConfigError(f"--{option} '{word}'", "name=path", f"for example --{option} world_facts=facts.jsonl")
        found[name] = path
    return found


def concepts(given: Any) -> dict[str, str | None]:
    """`NAME` or `NAME=REPLACEMENT` words (or a mapping from a config file) to names with their replacements.

    Raises:
        ConfigError: an empty name, or one that is given twice.
    """
    pairs = (
        [(str(name), None if other is None else str(other)) for name, other in given.items()]
        if isinstance(given, Mapping)
        else [(name, other if equals else None) for name, equals, other in (str(w).partition("=") for w in given or ())]
    )
    found: dict[str, str | None] = {}
    for name, other in pairs:
        if not name.strip() or (other is not None and not other.strip()) or name.strip() in found:
            raise ConfigError(
                f"--concept '{name}{'' if other is None else '=' + other}'", "each name once, NAME or NAME=REPLACEMENT"
            )
        found[name.strip()] = None if other is None else other.strip()
    return found


def refuse_unknown(values: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Refuse keys that nobody takes."""
    for key in values:
        if key not in set(known):
            raise ConfigError(f"unknown key '{key}' for {owner}", None, nearest(key, known))


def prompt_format(values: dict[str, Any]) -> Any:
    """The prompt format of `prompt.*` keys, or None."""
    from efface.subjects.prompts import PromptFormat

    given = values.pop(PROMPT, None)
    if given is not None and not isinstance(given, dict):
        raise ConfigError(f"prompt={given!r}", "prompt.style=..., prompt.prompt=...", "name its parts")
    return None if given is None else PromptFormat.parse(given, owner="prompt")


def kind_of(source: str) -> str:
    """What a model folder or hub id holds: causal-lm, classifier or regressor (what is none of them is read as the first)."""
    from efface.subjects.loading import glance

    kind = glance(source).kind
    return str(kind) if kind in PREDICTORS else "causal-lm"


def show_progress(json_output: bool) -> None:
    """Progress bars on, unless the output is for a machine."""
    SHOW.set(not json_output)


def one_thread() -> None:
    """Let torch use one thread: the lab's models are so small that several only wait for each other.

    It also makes the same seed give the same bits on machines with other numbers of cores.
    """
    import torch

    torch.set_num_threads(1)


def tell(text: str, *, json_output: bool = False) -> None:
    """A line for a person; on stderr where stdout is for a machine."""
    (sys.stderr if json_output else sys.stdout).write(text + "\n")


def emit(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def show_config(title: str, values: Mapping[str, Any], *, json_output: bool = False) -> None:
    """Print the resolved configuration."""
    body = yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False, allow_unicode=True)
    tell(f"{title}\n" + "".join(f"  {line}\n" for line in body.splitlines()).rstrip("\n"), json_output=json_output)


def cost_lines(costs: Iterable[Any]) -> list[str]:
    """One line a phase: seconds, throughput, peak memory."""
    lines = []
    for cost in costs:
        rate = f", {cost.tokens_per_second:,.0f} tokens/s" if cost.tokens_per_second else ""
        lines.append(f"{cost.phase}: {cost.seconds:.1f} s{rate}, peak {cost.peak_mb:,.0f} MiB")
    return lines
