"""`efface.load`: look at a model's JSON files, and load it as the subject that it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

from efface.errors import InputError, ModelError, nearest
from efface.subjects.causal_lm import CausalLM, load_causal_lm
from efface.subjects.dual_encoder import DualEncoder, load_dual_encoder
from efface.subjects.encoder import Encoder, load_encoder
from efface.subjects.loading import glance
from efface.subjects.predictor import Predictor, load_predictor

LOADERS: dict[str, Callable[..., Any]] = {
    "causal-lm": load_causal_lm,
    "encoder": load_encoder,
    "dual-encoder": load_dual_encoder,
    "classifier": load_predictor,
    "regressor": load_predictor,
}


@overload
def load(source: str | Path, kind: Literal["causal-lm"], **options: Any) -> CausalLM: ...
@overload
def load(source: str | Path, kind: Literal["encoder"], **options: Any) -> Encoder: ...
@overload
def load(source: str | Path, kind: Literal["dual-encoder"], **options: Any) -> DualEncoder: ...
@overload
def load(source: str | Path, kind: Literal["classifier", "regressor"], **options: Any) -> Predictor: ...
@overload
def load(source: str | Path, kind: str | None = None, **options: Any) -> Any: ...
def load(source: str | Path, kind: str | None = None, **options: Any) -> Any:
    """Load a model as a causal LM, an encoder, a dual encoder, a classifier or a regressor.

    Args:
        source: hub id or folder.
        kind: `causal-lm`, `encoder`, `dual-encoder`, `classifier` or `regressor`; default: what config.json, modules.json
            and model.json say. A folder that says nothing is tried as a causal LM.
        options: of `load_causal_lm`, `load_encoder`, `load_dual_encoder` or `load_predictor`; all take `revision`, `dtype`,
            `trust_remote_code` and `check_values`.

    Raises:
        ModelError: one line that says what is wrong with the folder or id, or an unknown kind.
        InputError: an option that this kind of model does not have.
    """
    if not isinstance(source, (str, Path)):
        raise InputError(f"a {type(source).__name__}", "a hub id or a folder", "give its name")
    if kind is not None and kind not in LOADERS:
        raise ModelError(f"unknown kind '{kind}'", f"one of {', '.join(LOADERS)}", nearest(str(kind), LOADERS))
    chosen = kind or glance(str(source), options.get("revision")).kind or "causal-lm"
    known = set(inspect.signature(LOADERS[chosen]).parameters) - {"source"}
    for name in options:
        if name not in known:
            raise InputError(f"option '{name}' for a model of kind {chosen}", f"one of {', '.join(sorted(known))}",
                             nearest(name, known))  # fmt: skip
    return LOADERS[chosen](source, **options)
