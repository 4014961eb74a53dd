"""The causal language model as a subject: a thin frame around the Hugging Face model and tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from efface.errors import InputError, ModelError
from efface.run.progress import track
from efface.subjects.loading import (
    check_dtype,
    load_tokenizer,
    look_before_loading,
    place_of,
    reading_weights,
    refuse_incomplete,
)
from efface.subjects.prompts import Encoded, PromptFormat, check_chat, collate, encode, encode_prompt, pad
from efface.subjects.subject import Subject, refuse_bad_values

WHAT = "a causal language model"


class CausalLM(Subject):
    """A causal LM with its tokenizer and prompt format.

    `model` and `tokenizer` are the Hugging Face objects themselves. With an adapter, `model` is a PEFT model.
    """

    kind = "causal-lm"

    def __init__(
        self, model: Any, tokenizer: Any, *, prompt: PromptFormat | None = None, source: str = "in memory",
        revision: str | None = None, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, source=source, revision=revision, trust_remote_code=trust_remote_code)
        self.tokenizer = tokenizer
        self.prompt = prompt or PromptFormat()
        check_chat(tokenizer, self.prompt)
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows",
                "a tokenizer that belongs to this model", "load model and tokenizer from one source",
            )  # fmt: skip

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

    def batch(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Padded tensors of tokenised rows, where the model is."""
        return {name: tensor.to(self.device) for name, tensor in collate(rows, self.pad_id).items()}

    def fresh(self) -> Any:
        """A module of the same form with fresh weights, from torch's global generator."""
        return type(self.model)(self.model.config)

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

    def generate_all(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        label: str = "generate",
    ) -> list[list[int]]:
        """`generate` for any number of prompts, those of like length together; in the order of the prompts."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        found: list[list[int]] = [[] for _ in prompts]
        with track(label, len(prompts)) as advance:
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                made = self.generate([prompts[i] for i in part], max_new_tokens=max_new_tokens)
                for index, tokens in zip(part, made, strict=True):
                    found[index] = tokens
                advance(len(part))
        return found

    def save_options(self) -> dict[str, Any]:
        """An adapter's folder holds the embedding where an edit has added rows to it."""
        if not hasattr(self.model, "peft_config"):
            return {}
        return {"save_embedding_layers": getattr(self.tokenizer, "former", None) is not None}

    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the tokenizer's end token and the checkpoint's own."""
        ids = [self.tokenizer.eos_token_id]
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ids += own if isinstance(own, list) else [own]
        return sorted({int(value) for value in ids if value is not None})

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def beside(self) -> list[Any]:
        """The tokenizer is saved beside the model."""
        return [self.tokenizer]


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
    from transformers import AutoModelForCausalLM

    import efface.subjects.sliced  # noqa: F401 - makes its kind of model known to transformers

    text = str(source)
    look_before_loading(text, revision)
    check_dtype(dtype)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    place = place_of(text)
    if device_map is None and torch.cuda.is_available():
        device_map = "auto"
    tokenizer = load_tokenizer(text, place, common, WHAT)
    with reading_weights(text, WHAT):
        model, info = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, device_map=device_map, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **common
        )  # fmt: skip
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
    refuse_incomplete(text, info)
    subject = CausalLM(
        model.eval(), tokenizer, prompt=prompt, source=text, revision=revision, trust_remote_code=trust_remote_code
    )
    if check_values:
        refuse_bad_values(subject)
    return subject


def as_subject(model: CausalLM | str | Path) -> CausalLM:
    """A subject from a subject, hub id or folder."""
    if isinstance(model, CausalLM):
        return model
    if isinstance(model, (str, Path)):
        return load_causal_lm(model)
    raise InputError(f"a {type(model).__name__}", "a subject, a hub id or a folder", "load it with efface.load")
