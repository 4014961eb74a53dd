"""Any torch module as a model folder: an importable factory with its arguments, and safetensors.

`model.json` names the factory (`package.module:function`), what it is called with, and how inputs are made. Importing it
runs code of an installed package, not of the folder; a factory outside efface must still be named by whoever loads it, or
trusted with `trust_remote_code`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from efface.data.pictures import open_picture
from efface.errors import ModelError
from efface.run.files import storage, write_json

FORM, WEIGHTS = "model.json", "model.safetensors"


class ImageForm(BaseModel):
    """How a picture becomes a tensor [C, H, W]: resized, scaled to 0..1, then (x - mean) / std by channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    mode: Literal["L", "RGB"] = "RGB"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def tensor(self, picture: Any) -> torch.Tensor:
        """[C, H, W] float32 of anything that `open_picture` takes."""
        opened = open_picture(picture).convert(self.mode)
        if opened.size != (self.width, self.height):
            opened = opened.resize((self.width, self.height))
        values = np.asarray(opened, dtype=np.float32) / 255
        if values.ndim == 2:
            values = values[:, :, None]
        scaled = (values - np.asarray(self.mean, dtype=np.float32)) / np.asarray(self.std, dtype=np.float32)
        return torch.from_numpy(scaled.transpose(2, 0, 1).copy())


class FactoryForm(BaseModel):
    """model.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    arguments: dict[str, Any] = {}
    task: Literal["classification", "regression"] = "classification"
    modality: Literal["features", "image"] = "features"
    labels: tuple[str, ...] = ()
    head: str | None = None
    image: ImageForm | None = None

    def build(self) -> torch.nn.Module:
        """A module with fresh weights, from torch's global generator.

        Raises:
            ModelError: no such factory, or it refuses its arguments.
        """
        made = resolve(self.factory)
        try:
            module = made(**self.arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{self.factory}({', '.join(self.arguments)}) failed: {error}", "arguments that the factory takes",
                "check the arguments in model.json",
            ) from error  # fmt: skip
        if not isinstance(module, torch.nn.Module):
            raise ModelError(f"{self.factory} returned a {type(module).__name__}", "a torch.nn.Module")
        return module


def resolve(name: str) -> Callable[..., Any]:
    """The factory behind `package.module:function`.

    Raises:
        ModelError: it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"cannot import the factory '{name}' ({error})", "package.module:function of an installed package",
            "install the package, or correct the name",
        ) from error  # fmt: skip
    if not callable(found):
        raise ModelError(f"'{name}' is a {type(found).__name__}", "a function or class that makes a module")
    return found  # type: ignore[no-any-return]


def read_form(folder: Path, factory: str | None, trust: bool) -> FactoryForm:
    """model.json of a folder, with a factory that whoever loads it vouches for.

    Raises:
        ModelError: broken, or a foreign factory that nobody named.
    """
    try:
        form = FactoryForm.model_validate(json.loads((folder / FORM).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ModelError(
            f"{folder / FORM} cannot be read ({str(error).splitlines()[0][:160]})",
            "a file written by efface, or like it",
        ) from error
    if factory is not None and factory != form.factory:
        raise ModelError(
            f"factory '{factory}'", f"'{form.factory}', as {FORM} says", "leave it out, or mend the folder"
        )
    if factory is None and not trust and not form.factory.startswith("efface."):
        raise ModelError(
            f"'{folder}' is built by '{form.factory}', which loading it would import", "your word for it",
            f"set factory={form.factory}",
        )  # fmt: skip
    return form


def read_module(folder: Path, form: FactoryForm) -> torch.nn.Module:
    """The module of a folder with its weights.

    Raises:
        ModelError: weights missing, broken, or of another form.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise ModelError(f"'{folder}' has no {WEIGHTS}", "safetensors beside model.json", "save the weights there")
    module = form.build()
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not whole ({error})", "complete safetensors", "copy it again") from error
    own = module.state_dict(keep_vars=True)
    firsts: dict[int, str] = {}
    needed = {name for name, tensor in own.items() if firsts.setdefault(id(tensor), name) == name}
    wrong = sorted(needed ^ stored.keys()) or [n for n in sorted(needed) if own[n].shape != stored[n].shape]
    if wrong:
        raise ModelError(
            f"'{folder}': tensor {wrong[0]} is missing, unknown or of another shape", f"the tensors of {form.factory}",
            "check the factory's arguments in model.json",
        )  # fmt: skip
    with torch.no_grad():
        for name in needed:
            own[name].data = own[name].data.to(stored[name].dtype)
            own[name].copy_(stored[name])
    return module.eval()


def save_module(module: torch.nn.Module, form: FactoryForm, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """model.json and model.safetensors."""
    write_json(folder / FORM, form.model_dump(mode="json"))
    with storage(folder):
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)


__all__ = ["FORM", "FactoryForm", "ImageForm", "read_form", "read_module", "resolve", "save_module"]
