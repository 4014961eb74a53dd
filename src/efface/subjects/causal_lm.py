"""The causal language model as a subject: a thin frame around the Hugging Face model and tokenizer."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from efface.errors import InputError, ModelError
from efface.run.digests import digest_tensors
from efface.run.files import whole_folder
from efface.run.record import ModelRecord
from efface.subjects.prompts import Encoded, PromptFormat, check_chat, encode, encode_prompt, pad
from efface.subjects.quiet import quiet_transformers

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "adapter_model.bin")


class CausalLM:
    """A causal LM with its tokenizer and prompt format.

    `model` and `tokenizer` are the Hugging Face objects themselves. With an adapter, `model` is a PEFT model.
    """

    kind = "causal-lm"

    def __init__(
        self, model: Any, tokenizer: Any, *, prompt: PromptFormat | None = None, source: str = "in memory",
        revision: str | None = None, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt or PromptFormat()
        self.source = source
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self._digest: str | None = None
        check_chat(tokenizer, self.prompt)
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows",
                "a tokenizer that belongs to this model", "load model and tokenizer from one source",
            )  # fmt: skip

    def __repr__(self) -> str:
        return f"CausalLM({self.source!r}, {self.n_parameters / 1e6:.2f} M parameters, {self.dtype})"

    # -- facts ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def n_parameters(self) -> int:
        """Number of scalars, tied tensors counted once."""
        return sum(tensor.numel() for tensor in self.weights().values())

    @property
    def context(self) -> int | None:
        """Longest sequence that the architecture takes, where it says so."""
        limit = getattr(self.model.config, "max_position_embeddings", None) or getattr(
            self.model.config, "n_positions", None
        )
        return int(limit) if limit else None

    @property
    def pad_id(self) -> int:
        """The id that fills a batch; masks hide it, so any id serves."""
        for value in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if value is not None:
                return int(value)
        return 0

    def weights(self) -> dict[str, torch.Tensor]:
        """Every parameter and persistent buffer by name; tensors that share storage appear once."""
        seen: dict[int, str] = {}
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen[id(tensor)] = name
                found[name] = tensor
        return found

    @property
    def digest(self) -> str:
        """Digest of the weights (cached; `changed()` drops the cache)."""
        if self._digest is None:
            self._digest = digest_tensors(self.weights())
        return self._digest

    def changed(self) -> None:
        """Say that the weights are other ones now."""
        self._digest = None

    def record(self) -> ModelRecord:
        """The facts that a run stores about its model."""
        return ModelRecord(
            source=self.source, revision=self.revision, kind=self.kind, digest=self.digest,
            parameters=self.n_parameters, dtype=str(self.dtype).removeprefix("torch."),
            trust_remote_code=self.trust_remote_code,
        )  # fmt: skip

    # -- text -> tokens -------------------------------------------------------------------------------------------

    def encode(self, question: str, answer: str, *, place: str = "row") -> Encoded:
        """Tokenise one example in the subject's prompt format."""
        return encode(self.tokenizer, self.prompt, question, answer, context=self.context, place=place)

    def encode_rows(self, data: Dataset, *, name: str = "data", column: str = "answer") -> list[Encoded]:
        """Tokenise one answer column of a canonical data set."""
        pairs = zip(data["question"], data[column], strict=True)
        return [self.encode(q, a, place=f"{name} row {i}") for i, (q, a) in enumerate(pairs)]

    def encode_prompts(self, data: Dataset, *, name: str = "data") -> list[list[int]]:
        """Token ids of every prompt, for generation."""
        return [
            encode_prompt(self.tokenizer, self.prompt, q, context=self.context, place=f"{name} row {i}")
            for i, q in enumerate(data["question"])
        ]

    # -- running --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Any]:
        """The model in evaluation mode without gradients; its former mode comes back."""
        mode = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self.model.train(mode)

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 64) -> list[list[int]]:
        """Greedy continuation of each prompt, without the end token.

        Args:
            prompts: token ids, one list a prompt; padded left here.
            max_new_tokens: the limit, also bounded by the context.
        """
        batch = pad(prompts, self.pad_id, side="left")
        width = batch["input_ids"].shape[1]
        if self.context:
            max_new_tokens = max(1, min(max_new_tokens, self.context - width))
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        with self.evaluating() as model, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # sampling settings of a checkpoint that greedy search ignores
            out = model.generate(
                **batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=self.pad_id,
                eos_token_id=self.stop_ids() or None,
            )  # fmt: skip
        stop = set(self.stop_ids())
        texts = []
        for row in out[:, width:].tolist():
            end = next((i for i, token in enumerate(row) if token in stop), len(row))
            texts.append(row[:end])
        return texts

    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the tokenizer's end token and the checkpoint's own."""
        ids = [self.tokenizer.eos_token_id]
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ids += own if isinstance(own, list) else [own]
        return sorted({int(value) for value in ids if value is not None})

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write safetensors, config and tokenizer; the folder is whole or absent.

        Raises:
            StorageError: the folder exists and is not empty (nothing is replaced), or cannot be written.
        """
        with whole_folder(Path(folder)) as partial:
            self.save_into(partial)

    def save_into(self, folder: Path) -> None:
        """Write the same files into a folder that the caller makes whole."""
        with quiet_transformers():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _look_before_loading(source: str, revision: str | None) -> None:
    """Name the usual mistakes in a local folder before a library does so in ten lines."""
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise ModelError(f"no folder at '{source}'", "a model folder or a hub id", "check the path")
        return
    if path.is_file():
        raise ModelError(
            f"'{source}' is a file", "the folder that holds config.json and safetensors", "name the folder"
        )
    if revision:
        raise ModelError(f"revision '{revision}' with the local folder '{source}'", "a hub id", "leave revision out")
    if not (path / "config.json").exists():
        raise ModelError(
            f"'{source}' has no config.json", "a Hugging Face model folder", "save it with save_pretrained"
        )
    if not list(path.glob("*.safetensors")):
        pickled = [name for name in PICKLED if (path / name).exists()]
        found = f"only pickled weights ({', '.join(pickled)})" if pickled else "no weights"
        raise ModelError(f"'{source}' has {found}", "safetensors", "convert it with save_pretrained (safetensors)")
    for weights in path.glob("*.safetensors"):
        try:
            weights.open("rb").close()
        except OSError as error:
            raise ModelError(f"cannot read {weights}: {error.strerror}", None, "check its permissions") from error
    if not any(
        (path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    ):
        raise ModelError(f"'{source}' has no tokenizer", "tokenizer files beside the model", "save the tokenizer there")


def _cannot_load(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"cannot load '{source}' as a causal language model ({_first_line(error)})", "a hub id or a folder of one",
        "check the id, the folder and the network",
    )  # fmt: skip


def _load_tokenizer(source: str, place: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(place, **options)
    except OSError as error:  # also a hub id that cannot be reached
        raise _cannot_load(source, error) from error
    except Exception as error:  # the tokenizers library raises bare exceptions for a broken file
        raise ModelError(
            f"cannot read the tokenizer of '{source}' ({type(error).__name__}: {_first_line(error)})",
            "tokenizer files that transformers can read", "save or download them again",
        ) from error  # fmt: skip


def load_causal_lm(
    source: str | Path, *, revision: str | None = None, dtype: str = "float32", device_map: Any = None,
    adapter: str | Path | None = None, prompt: PromptFormat | None = None, trust_remote_code: bool = False,
    check_values: bool = True,
) -> CausalLM:  # fmt: skip
    """Load a causal LM from a hub id or folder, safetensors only.

    Args:
        source: hub id or folder.
        revision: commit, tag or branch on the hub.
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        device_map: as in transformers; default: CUDA where there is one, else CPU.
        adapter: folder of a PEFT adapter to put on top.
        prompt: how questions are asked; default plain.
        trust_remote_code: run code from the repository; off unless asked for, and recorded.
        check_values: refuse weights with NaN or infinity.

    Raises:
        ModelError: one line that says what is wrong with the folder or id.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    text = str(source)
    _look_before_loading(text, revision)
    if dtype not in {"float32", "bfloat16", "float16", "auto"}:
        raise ModelError(f"dtype '{dtype}'", "float32, bfloat16, float16 or auto", "choose one of them")
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    place = str(Path(text).expanduser()) if Path(text).expanduser().exists() else text
    if device_map is None and torch.cuda.is_available():
        device_map = "auto"
    tokenizer = _load_tokenizer(text, place, common)
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, device_map=device_map, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **common
            )  # fmt: skip
            if adapter is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, str(adapter))
    except SafetensorError as error:
        raise ModelError(
            f"the weights of '{text}' are not whole ({_first_line(error)})", "complete safetensors files",
            "copy or download them again",
        ) from error  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _cannot_load(text, error) from error
    if info["mismatched_keys"]:
        name, *shapes = sorted(info["mismatched_keys"])[0]
        found, wanted = (list(shape) for shape in shapes)
        raise ModelError(
            f"the weights of '{text}' hold {name} with the shape {found}", f"{wanted}, as its config says",
            "copy or download the folder again",
        )  # fmt: skip
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights of '{text}' lack {len(missing)} tensors (first: {missing[0]})", "all tensors of its config",
            "copy or download the folder again",
        )  # fmt: skip
    subject = CausalLM(
        model.eval(), tokenizer, prompt=prompt, source=text, revision=revision, trust_remote_code=trust_remote_code
    )
    if check_values:
        refuse_bad_values(subject)
    return subject


def refuse_bad_values(subject: CausalLM) -> None:
    """Raise where a weight is NaN or infinite (safetensors does not check values)."""
    for name, tensor in subject.weights().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"'{subject.source}': tensor {name} holds NaN or infinity", "finite weights", "use a sound checkpoint"
            )


def as_subject(model: CausalLM | str | Path) -> CausalLM:
    """A subject from a subject, hub id or folder."""
    if isinstance(model, CausalLM):
        return model
    if isinstance(model, (str, Path)):
        return load_causal_lm(model)
    raise InputError(f"a {type(model).__name__}", "a subject, a hub id or a folder", "load it with efface.load")
