"""What loading every kind of model shares: a look at the folder first, readable errors, complete weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efface.errors import ModelError
from efface.subjects.quiet import quiet_transformers

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "adapter_model.bin")
DTYPES = ("float32", "bfloat16", "float16", "auto")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
DUAL = ("clip", "siglip", "siglip2")
"""Model types of transformers that are dual encoders for us."""

COMMANDS = {
    "causal-lm": "efface forget and efface audit take it",
    "encoder": "efface learn and efface measure geometry take it",
    "classifier": "efface forget and efface audit take it",
    "regressor": "efface forget and efface audit take it",
    "dual-encoder": "efface measure information-gain takes it; its towers are .image and .text of load_dual_encoder",
}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def place_of(source: str) -> str:
    """The folder with `~` expanded where there is one, else the hub id."""
    path = Path(source).expanduser()
    return str(path) if path.exists() else source


def check_dtype(dtype: str) -> None:
    """Refuse an unknown precision."""
    if dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}'", "float32, bfloat16, float16 or auto", "choose one of them")


def cannot_load(source: str, error: Exception, what: str) -> ModelError:
    """The error for a source that the library refuses."""
    return ModelError(
        f"cannot load '{source}' as {what} ({first_line(error)})", "a hub id or a folder of one",
        "check the id, the folder and the network",
    )  # fmt: skip


def look_at_place(source: str, revision: str | None) -> Path | None:
    """The local folder, or None for a hub id; a path that is none, a file, or a revision of a folder is an error."""
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise ModelError(f"no folder at '{source}'", "a model folder or a hub id", "check the path")
        return None
    if path.is_file():
        raise ModelError(
            f"'{source}' is a file", "the folder that holds config.json and safetensors", "name the folder"
        )
    if revision:
        raise ModelError(f"revision '{revision}' with the local folder '{source}'", "a hub id", "leave revision out")
    return path


def refuse_unreadable(path: Path) -> None:
    """Name a weights file that cannot be opened."""
    for weights in path.glob("*.safetensors"):
        try:
            weights.open("rb").close()
        except OSError as error:
            raise ModelError(f"cannot read {weights}: {error.strerror}", None, "check its permissions") from error


def look_before_loading(
    source: str, revision: str | None, *, tokenizer: bool = True, image_processor: bool = False
) -> None:
    """Name the usual mistakes in a local folder before a library does so in ten lines.

    Args:
        source: folder or hub id; of a hub id nothing is looked at.
        revision: must be left out for a folder.
        tokenizer, image_processor: which of them must lie beside the weights.

    Raises:
        ModelError: one line that says what is missing and what to do.
    """
    path = look_at_place(source, revision)
    if path is None:
        return
    if not (path / "config.json").exists():
        raise ModelError(
            f"'{source}' has no config.json", "a Hugging Face model folder", "save it with save_pretrained"
        )
    if not list(path.glob("*.safetensors")):
        pickled = [name for name in PICKLED if (path / name).exists()]
        found = f"only pickled weights ({', '.join(pickled)})" if pickled else "no weights"
        raise ModelError(f"'{source}' has {found}", "safetensors", "convert it with save_pretrained (safetensors)")
    refuse_unreadable(path)
    if tokenizer and not any((path / name).exists() for name in TOKENIZER):
        raise ModelError(f"'{source}' has no tokenizer", "tokenizer files beside the model", "save the tokenizer there")
    if image_processor and not any((path / name).exists() for name in IMAGE_PROCESSOR):
        raise ModelError(
            f"'{source}' has no image processor", "preprocessor_config.json beside the model",
            "save the image processor there with save_pretrained",
        )  # fmt: skip


def load_tokenizer(source: str, place: str, options: dict[str, Any], what: str) -> Any:
    """The tokenizer of a folder or hub id, with one readable line where it is broken."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(place, **options)
    except OSError as error:  # also a hub id that cannot be reached
        raise cannot_load(source, error, what) from error
    except Exception as error:  # the tokenizers library raises bare exceptions for a broken file
        raise ModelError(
            f"cannot read the tokenizer of '{source}' ({type(error).__name__}: {first_line(error)})",
            "tokenizer files that transformers can read", "save or download them again",
        ) from error  # fmt: skip


def pil_backend() -> dict[str, Any]:
    """The option that keeps transformers from torchvision: our image processors are always the PIL ones.

    transformers 5 has `backend="pil"`, which also reads folders saved with a `...Fast` class; 4.x has `use_fast`.
    """
    import transformers

    return {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}


def load_image_processor(source: str, place: str, options: dict[str, Any], what: str) -> Any:
    """The PIL image processor of a folder or hub id, whatever class it was saved with."""
    from transformers import AutoImageProcessor

    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(place, **pil_backend(), **options)
    except OSError as error:
        raise cannot_load(source, error, what) from error
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"cannot read the image processor of '{source}' ({type(error).__name__}: {first_line(error)})",
            "a preprocessor_config.json that transformers can read with PIL", "save or download it again",
        ) from error  # fmt: skip


@contextlib.contextmanager
def reading_weights(source: str, what: str) -> Iterator[None]:
    """Turn the libraries' errors inside this block into one readable line; their notes stay off the terminal."""
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            yield
    except SafetensorError as error:
        raise ModelError(
            f"the weights of '{source}' are not whole ({first_line(error)})", "complete safetensors files",
            "copy or download them again",
        ) from error  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise cannot_load(source, error, what) from error


def refuse_incomplete(source: str, info: dict[str, Any], *, optional: str | None = None) -> bool:
    """Refuse weights that lack tensors or have other shapes than the config says.

    Args:
        info: what `from_pretrained(output_loading_info=True)` returns.
        optional: a prefix of tensors that may all be missing together (a head that is not used).

    Returns:
        whether the optional tensors are missing.
    """
    if info["mismatched_keys"]:
        name, *shapes = sorted(info["mismatched_keys"])[0]
        found, wanted = (list(shape) for shape in shapes)
        raise ModelError(
            f"the weights of '{source}' hold {name} with the shape {found}", f"{wanted}, as its config says",
            "copy or download the folder again",
        )  # fmt: skip
    missing = sorted(info["missing_keys"])
    if missing and optional and all(name.startswith(optional) for name in missing):
        return True
    if missing:
        raise ModelError(
            f"the weights of '{source}' lack {len(missing)} tensors (first: {missing[0]})", "all tensors of its config",
            "copy or download the folder again",
        )  # fmt: skip
    return False


def one_device() -> Any:
    """`device_map` of a small model: the first GPU where there is one, else the CPU."""
    return {"": 0} if torch.cuda.is_available() else None


OWN = {"efface_conv": "image", "efface_vector": "features"}
"""Model types of `small_encoders`, and what they take."""

ENSEMBLE = "ensemble.json"
"""In the folder of an ensemble: its modality and the names of its parts."""


# -- what is it? -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glance:
    """What config.json and modules.json say about a model, before anything is loaded."""

    kind: (
        str | None
    )  # "causal-lm", "encoder", "dual-encoder", "classifier", "regressor"; None where nothing could be said
    model_type: str = "unknown"
    modality: str | None = None  # of an encoder
    modules: tuple[dict[str, Any], ...] | None = None  # of a sentence-transformers folder
    pooling: str | None = None  # stored in config.json by us

    @property
    def words(self) -> str:
        """For an error: what it is."""
        name = {
            "causal-lm": "a causal language model", "dual-encoder": "a dual encoder", "classifier": "a classifier",
            "regressor": "a regressor",
        }.get(self.kind or "")  # fmt: skip
        if self.kind == "encoder":
            name = f"an encoder of {self.modality}s"
        of = "sentence-transformers, " if self.modules is not None else ""
        return f"{name or 'a model'} ({of}model type '{self.model_type}')"

    def refuse(self, source: str, expected: str) -> ModelError:
        """The error for a model of another kind than asked for."""
        return ModelError(f"'{source}' is {self.words}", expected, COMMANDS.get(self.kind or "", "use another model"))


def read_config(place: str, name: str, revision: str | None = None) -> Any:
    """A JSON file of a folder or hub repository; None where it is absent, unreachable or broken."""
    path = Path(place)
    try:
        if not path.is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(place, name, revision=revision))
        else:
            path = path / name
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the loader of the chosen kind says what is wrong
        return None


def _names() -> tuple[Collection[str], Collection[str], Collection[str]]:
    """Model types with a causal head, those of text encoders, those of image encoders."""
    from transformers.models.auto import modeling_auto as auto

    texts = {*auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    images = {*auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_MAPPING_NAMES}
    images |= {"clip_vision_model", "siglip_vision_model", "siglip2_vision_model"}
    texts |= {"clip_text_model", "siglip_text_model", "siglip2_text_model"}
    return auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, texts - images, images - set(DUAL)


def glance(source: str, revision: str | None = None) -> Glance:
    """Say what kind of model lies at a folder or hub id, from its JSON files alone."""
    place = place_of(source)
    modules = read_config(place, "modules.json", revision)
    if isinstance(modules, list) and modules and all(isinstance(module, dict) for module in modules):
        inner = str(modules[0].get("path", ""))
        config = read_config(place, f"{inner}/config.json" if inner else "config.json", revision)
        model_type = str(config.get("model_type", "unknown")) if isinstance(config, dict) else "unknown"
        pair = model_type in DUAL or str(modules[0].get("type", "")).endswith("CLIPModel")
        modality = None if pair else "image" if model_type in _names()[2] else "text"
        return Glance("dual-encoder" if pair else "encoder", model_type, modality, tuple(modules))
    form = read_config(place, "model.json") if Path(place).is_dir() else None
    if isinstance(form, dict) and "factory" in form:
        kind = "regressor" if form.get("task") == "regression" else "classifier"
        return Glance(kind, str(form["factory"]), str(form.get("modality", "features")))
    several = read_config(place, ENSEMBLE) if Path(place).is_dir() else None
    if isinstance(several, dict):
        return Glance("encoder", "ensemble", str(several.get("modality", "image")))
    config = read_config(place, "config.json", revision)
    if not isinstance(config, dict):
        return Glance(None)
    model_type = str(config.get("model_type", "unknown"))
    head = str((config.get("architectures") or [""])[0])
    causal, texts, images = _names()
    stored = config.get("efface_pooling")
    if model_type in OWN:
        return Glance("encoder", model_type, OWN[model_type], pooling=stored)
    if model_type in DUAL:
        return Glance("dual-encoder", model_type)
    if head.endswith(("ForCausalLM", "LMHeadModel")) and stored is None:
        return Glance("causal-lm", model_type)
    if head.endswith(("ForImageClassification", "ForSequenceClassification")) and stored is None:
        one = config.get("problem_type") == "regression" or len(config.get("id2label") or {0: "", 1: ""}) == 1
        modality = "image" if head.endswith("ForImageClassification") else "text"
        return Glance("regressor" if one else "classifier", model_type, modality)
    if model_type in images:
        return Glance("encoder", model_type, "image", pooling=stored)
    if model_type in texts or stored is not None:
        return Glance("encoder", model_type, "text", pooling=stored)
    return Glance("causal-lm" if model_type in causal else None, model_type)
