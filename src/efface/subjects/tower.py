"""A tower: one modality in, one vector an item out. Encoders are one tower, dual encoders two.

What a tower promises: `prepare(items)` gives CPU tensors, `features(inputs)` [B, D] with gradient and not normalised,
`embed(items)` [N, D] float32 unit rows on the CPU. An item's row does not depend on the batch that it came in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from efface.data.items import open_picture
from efface.errors import InputError, ModelError
from efface.run.progress import track

Modality = Literal["image", "text", "features"]


def check_texts(items: Sequence[Any]) -> list[str]:
    """The items as texts.

    Raises:
        InputError: an item that is no text, or no items at all.
    """
    texts = list(items)
    for index, item in enumerate(texts):
        if not isinstance(item, str):
            raise InputError(
                f"item {index} for the text tower is a {type(item).__name__}", "a text",
                "give texts here and pictures to the image tower",
            )  # fmt: skip
    return texts


def check_pictures(items: Sequence[Any]) -> list[Any]:
    """The items as RGB pictures; paths and encoded bytes are opened.

    Raises:
        InputError: an item that is no picture.
    """
    found = []
    for index, item in enumerate(items):
        if item is None or isinstance(item, (int, float)):
            raise InputError(
                f"item {index} for the image tower is a {type(item).__name__}", "a picture",
                "give pictures here and texts to the text tower",
            )  # fmt: skip
        found.append(open_picture(item, place=f"item {index} for the image tower"))
    return found


def check_arrays(items: Sequence[Any]) -> Tensor:
    """The items as one float32 tensor [B, ...].

    Raises:
        InputError: an item that is no array of numbers, or arrays of several shapes.
    """
    try:
        found = torch.from_numpy(np.stack([np.asarray(item, dtype=np.float32) for item in items]))
    except (TypeError, ValueError) as error:
        raise InputError(f"items for the feature tower: {error}", "arrays of numbers of one shape") from error
    if found.ndim < 2 or not bool(torch.isfinite(found).all()):
        raise InputError(f"features of shape {list(found.shape)}, or NaN or infinity among them", "finite rows [D]")
    return found


class Tower(ABC):
    """One modality of a model.

    Args:
        module: the torch module that is switched to evaluation mode while embedding.
        modality: `image`, `text` or `features` (arrays).
        source: what to call the model in an error.
    """

    def __init__(self, module: Any, modality: Modality, source: str) -> None:
        self.module = module
        self.modality: Modality = modality
        self.source = source
        self._width: int | None = None

    @abstractmethod
    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """CPU tensors of B items, each with B rows, so that a batch can be cut into parts."""

    @abstractmethod
    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, D] with gradient, not normalised (but for a model whose own last step normalises)."""

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        device: torch.device = next(self.module.parameters()).device
        return device

    @property
    def width(self) -> int:
        """D; found by embedding one item where the configuration does not say it."""
        if self._width is None:
            from PIL import Image

            self._width = self.embed(["a"] if self.modality == "text" else [Image.new("RGB", (32, 32))]).shape[1]
        return self._width

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation a channel: `pixel_values` are (x - mean) / std of pictures x in [0, 1].

        Raises:
            ModelError: a text tower, or a processor that does not normalise so.
        """
        processor = self.image_processor
        if processor is None:
            raise ModelError(f"'{self.source}': normalisation of a text tower", "an image tower", "use the other tower")
        if getattr(processor, "do_rescale", True) is False or abs(processor.rescale_factor * 255 - 1) > 1e-6:
            raise ModelError(f"'{self.source}': an image processor without the factor 1/255", "pictures in [0, 1]",
                             "set do_rescale and rescale_factor in its preprocessor_config.json")  # fmt: skip
        if not getattr(processor, "do_normalize", True):
            return [0.0] * 3, [1.0] * 3
        return list(processor.image_mean), list(processor.image_std)

    @property
    def image_processor(self) -> Any:
        """The PIL image processor, None for texts."""
        return None

    def moved(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs on the module's device, real ones in its type."""
        dtype = next(self.module.parameters()).dtype
        return {
            name: tensor.to(self.device, dtype) if tensor.is_floating_point() else tensor.to(self.device)
            for name, tensor in inputs.items()
        }

    def embed(self, items: Sequence[Any], batch_size: int = 64, *, label: str = "embed") -> Tensor:
        """Embed items without gradient in evaluation mode; the former mode comes back.

        Args:
            items: N texts, or N pictures (PIL images, or anything that `open_picture` takes: then only one batch of
                them is open at a time).
            batch_size: items in one pass.
            label: what the progress bar says.

        Returns:
            [N, D] float32 unit rows on the CPU, in the order of the items.

        Raises:
            InputError: no items, or an item of another modality.
            ModelError: a row that is zero or not finite.
        """
        if isinstance(items, (str, bytes)) or not len(items):
            what = "one text" if isinstance(items, (str, bytes)) else "no items"
            raise InputError(f"{what} to embed", f"a list of {self.modality}s", "give a list with at least one item")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}", "at least 1", "choose a larger one")
        order = list(range(len(items)))
        if self.modality == "text":  # texts of like length together: less padding
            items = check_texts(items)
            order.sort(key=lambda index: -len(items[index]))
        rows: list[Tensor] = []
        mode = self.module.training
        self.module.eval()
        try:
            with torch.no_grad(), track(label, len(items)) as advance:
                for start in range(0, len(order), batch_size):
                    part = order[start : start + batch_size]
                    rows.append(self._unit([items[index] for index in part], part))
                    advance(len(part))
        finally:
            self.module.train(mode)
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(rows)[place]

    def _unit(self, items: list[Any], numbers: Sequence[int]) -> Tensor:
        """[b, D] float32 unit rows of one batch."""
        raw = self.features(self.prepare(items)).float().cpu()
        if not bool(torch.isfinite(raw).all()):
            row = numbers[int((~torch.isfinite(raw)).any(1).int().argmax())]
            raise ModelError(f"'{self.source}': embedding {row} holds NaN or infinity", "finite numbers",
                             "use dtype float32, or a sound checkpoint")  # fmt: skip
        norms = raw.norm(dim=1, keepdim=True)
        if bool((norms == 0).any()):
            row = numbers[int((norms[:, 0] == 0).int().argmax())]
            raise ModelError(f"'{self.source}': embedding {row} is all zeros", "vectors with a direction",
                             "use another model, or drop the item")  # fmt: skip
        unit: Tensor = raw / norms
        return unit


class TextTower(Tower):
    """A tokenizer and a function from its ids to vectors.

    Args:
        run: (inputs on the device) -> [B, D].
        max_length: longer texts are cut here, as the model was trained to see them.
        padding: `longest` of the batch, or `max_length` (SigLIP, which was trained so and has no mask).
        mask: whether the model gets an attention mask.
    """

    def __init__(
        self, module: Any, tokenizer: Any, run: Callable[[dict[str, Tensor]], Tensor], *, source: str, max_length: int,
        padding: Literal["longest", "max_length"] = "longest", mask: bool = True, width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(module, "text", source)
        self.tokenizer, self.run, self.max_length = tokenizer, run, max_length
        self.padding, self.mask, self._width = padding, mask, width
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of '{source}' has no token to pad with", "a pad or end token",
                             "set its pad_token and save it again")  # fmt: skip
        if tokenizer.pad_token_id is None:  # the mask hides it, so any id serves
            tokenizer.pad_token = tokenizer.eos_token

    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """`input_ids` [B, L] and, where the model takes it, `attention_mask` [B, L]; padded on the right."""
        batch = self.tokenizer(
            check_texts(items), padding=self.padding, truncation=True, max_length=self.max_length, padding_side="right",
            return_tensors="pt", return_attention_mask=True,
        )  # fmt: skip
        if batch["input_ids"].shape[1] == 0 or not bool(batch["attention_mask"].any(1).all()):
            row = int((~batch["attention_mask"].any(1)).int().argmax()) if batch["input_ids"].shape[1] else 0
            raise InputError(f"text {row} ({str(items[row])[:40]!r}) has no tokens", "some text", "drop it")
        return {"input_ids": batch["input_ids"]} | ({"attention_mask": batch["attention_mask"]} if self.mask else {})

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, D] with gradient, not normalised."""
        return self.run({name: tensor.to(self.device) for name, tensor in inputs.items()})


class FeatureTower(Tower):
    """A function from arrays to vectors.

    Args:
        run: (features [B, ...] on the device) -> [B, D].
        width: D.
    """

    def __init__(self, module: Any, run: Callable[[Tensor], Tensor], *, source: str, width: int) -> None:
        super().__init__(module, "features", source)
        self.run, self._width = run, width

    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """`features` [B, ...] float32."""
        return {"features": check_arrays(items)}

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, D] with gradient, not normalised."""
        return self.run(inputs["features"].to(self.device, next(self.module.parameters()).dtype))


class ImageTower(Tower):
    """A PIL image processor and a function from pixels to vectors."""

    def __init__(
        self, module: Any, processor: Any, run: Callable[[dict[str, Tensor]], Tensor], *, source: str
    ) -> None:  # fmt: skip
        super().__init__(module, "image", source)
        self.processor, self.run = processor, run

    @property
    def image_processor(self) -> Any:
        """The PIL image processor."""
        return self.processor

    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """`pixel_values` [B, 3, H, W] (SigLIP 2 with free sizes: patches [B, P, C], their mask and their grid)."""
        batch = self.processor(images=check_pictures(items), return_tensors="pt")
        return {name: tensor for name, tensor in batch.items() if isinstance(tensor, Tensor)}

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, D] with gradient, not normalised."""
        return self.run(self.moved(inputs))


def longest(tokenizer: Any, config: Any) -> int:
    """The longest text in tokens: the tokenizer's limit and the number of the model's positions."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions and getattr(config, "model_type", "") in {
        "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text",
    }:  # fmt: skip
        positions -= (getattr(config, "pad_token_id", None) or 0) + 1  # these count positions from there
    limits = [int(value) for value in (positions, tokenizer.model_max_length) if value and 0 < value < 1_000_000]
    return min(limits, default=512)
