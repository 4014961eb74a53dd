"""A causal LM whose training data sit in slices: one frozen base, and a LoRA adapter for every stage of every order.

S3T (Basu Roy Chowdhury et al., arXiv 2406.16257): a shard's slices are learnt one after another, each into its own group
of layers, from the output side down. A model is served as the average of its shards, each with the longest prefix of
stages that no deletion has touched. Stages with the same shard and the same slices so far are one adapter (a prefix tree).

Which slices have had requests is a buffer of the model, so what is served follows from the weights alone: an edit, a saved
folder and a digest carry it. The adapter of a stage that is not served is not in the graph.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from efface.data.deletion_plan import DeletionPlan, live_prefixes, longest
from efface.errors import ConfigError, ModelError
from efface.numerics.slice_orders import Order
from efface.run.digests import digest_tensors
from efface.run.files import storage
from efface.subjects.hooks import LAYER

PLAN, WEIGHTS = "plan.json", "model.safetensors"
Node = tuple[int, Order]
"""(shard, slices learnt so far): one stage, one adapter."""


def layer_groups(layers: int, stages: int) -> list[range]:
    """[L] ranges of layers, from the output side down; the remainder goes to the first stages.

    Raises:
        ConfigError: fewer layers than stages.
    """
    if not 1 <= stages <= layers:
        raise ConfigError(f"{layers} layers for {stages} slices", "at least one layer a slice", "lower slices")
    found, top = [], layers
    for stage in range(stages):
        size = layers // stages + (stage < layers % stages)
        found.append(range(top - size, top))
        top -= size
    return found


def nodes_of(orders: Sequence[Sequence[Order]]) -> list[Node]:
    """Every stage once, a stage after those that it builds on."""
    return list(dict.fromkeys(
        (shard, order[:depth]) for shard, those in enumerate(orders) for order in those
        for depth in range(1, len(order) + 1)
    ))  # fmt: skip


def adapter_name(node: Node) -> str:
    """Of a stage: shard, then the slices learnt so far."""
    return f"shard{node[0]}_" + "_".join(str(s) for s in node[1])


class SlicedConfig(PretrainedConfig):  # type: ignore[misc]
    """The base's configuration, orders and adapter settings; plain values only."""

    model_type = "efface-sliced"

    def __init__(
        self, base: dict[str, Any] | None = None, orders: list[list[list[int]]] | None = None, rank: int = 8,
        alpha: float = 16.0, dropout: float = 0.0, targets: str = "all-linear", average: str = "log-probabilities",
        parts: dict[str, str] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.base, self.orders = base or {}, orders or []
        self.parts = parts or {}
        self.rank, self.alpha, self.dropout, self.targets, self.average = rank, alpha, dropout, targets, average
        for name in ("vocab_size", "max_position_embeddings", "n_positions", "eos_token_id", "pad_token_id"):
            if self.base.get(name) is not None:
                kwargs.setdefault(name, self.base[name])
        super().__init__(**kwargs)


class SlicedLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """See the module. `base` is the Hugging Face model with every stage's adapter; `requests` [m, L] counts requests."""

    config_class = SlicedConfig

    def __init__(self, config: SlicedConfig) -> None:
        super().__init__(config)
        known = dict(config.base)
        with torch.random.fork_rng():  # the fresh weights are replaced by those of the file or of the base
            self.base = AutoModelForCausalLM.from_config(AutoConfig.for_model(known.pop("model_type"), **known))
        self.base.generation_config = None
        self.orders: list[list[Order]] = [[tuple(order) for order in shard] for shard in config.orders]
        self.nodes = nodes_of(self.orders)
        self.plan: DeletionPlan | None = None
        self.requests: Tensor
        self.register_buffer("requests", torch.zeros(len(self.orders), len(self.orders[0][0]), dtype=torch.int64))
        self._inject()
        self.generation_config.use_cache = False
        for name in ("eos_token_id", "pad_token_id"):
            setattr(self.generation_config, name, known.get(name))

    # -- stages ---------------------------------------------------------------------------------------------------

    def _linears(self) -> dict[int, list[str]]:
        """Names of the adapted modules by layer."""
        suffixes = None if self.config.targets == "all-linear" else set(self.config.targets.split(","))
        found: dict[int, list[str]] = {}
        depth = 0
        for name, module in self.base.named_modules():
            match = LAYER.search(name)
            if match is None:
                continue
            depth = max(depth, int(match[1]) + 1)
            linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
            if linear and (suffixes is None or name.rpartition(".")[2] in suffixes):
                found.setdefault(int(match[1]), []).append(name)
        if sorted(found) != list(range(depth)) or not depth:
            raise ConfigError(
                f"targets='{self.config.targets}' on {type(self.base).__name__}", "a linear module in every layer"
            )
        return found

    def _inject(self) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        linears = self._linears()
        groups = layer_groups(len(linears), self.requests.shape[1])
        with torch.random.fork_rng():
            for node in self.nodes:
                names = [name for layer in groups[len(node[1]) - 1] for name in linears[layer]]
                parts = [self.base.get_submodule(name) for name in names]
                turned = any(type(p).__name__ == "Conv1D" or getattr(p, "fan_in_fan_out", False) for p in parts)
                settings = LoraConfig(
                    r=self.config.rank, lora_alpha=self.config.alpha, lora_dropout=self.config.dropout, use_rslora=True,
                    fan_in_fan_out=turned,
                    target_modules="|".join(re.escape(name) for name in names),
                )  # fmt: skip
                vars(self.base).pop("peft_config", None)  # else peft warns that the model has adapters already
                inject_adapter_in_model(settings, self.base, adapter_name=adapter_name(node))
        vars(self.base).pop("peft_config", None)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def tensors_of(self, node: Node) -> dict[str, Tensor]:
        """The adapter of one stage, by the model's names."""
        mark = f".{adapter_name(node)}."
        return {name: tensor for name, tensor in self.named_parameters() if mark in name}

    def activate(self, shard: int, prefix: Order) -> None:
        """Put the stages of a prefix into the graph, and no others."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        names = [adapter_name((shard, prefix[:depth])) for depth in range(1, len(prefix) + 1)]
        for module in self.base.modules():
            if isinstance(module, BaseTunerLayer):
                module._active_adapter = names  # set_adapter would also move requires_grad

    def part_digests(self) -> dict[str, str]:
        """Digests of the frozen base and of every live stage: what the plan's promise is about."""
        tensors = dict(self.named_parameters())
        found = {"base": digest_tensors({name: t for name, t in tensors.items() if ".lora_" not in name})}
        return found | {adapter_name(node): digest_tensors(self.tensors_of(node)) for node in self.live_nodes()}

    # -- what is served -------------------------------------------------------------------------------------------

    def prefixes(self) -> list[list[int]]:
        """[m][B] live prefix of every order."""
        return live_prefixes(self.orders, self.requests.cpu().numpy())

    def serving(self) -> list[tuple[int, Order]]:
        """The live shards, each with the prefix that it serves."""
        found = longest(self.orders, self.prefixes())
        return [(shard, prefix) for shard, prefix in enumerate(found) if prefix is not None]

    def live_nodes(self) -> Iterator[Node]:
        """Stages of some live prefix: those that still exist."""
        lengths = self.prefixes()
        for shard, prefix in self.nodes:
            those = zip(self.orders[shard], lengths[shard], strict=True)
            if any(order[: len(prefix)] == prefix and live >= len(prefix) for order, live in those):
                yield shard, prefix

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, logits_to_keep: int | Tensor = 0,
        use_cache: bool | None = None, **more: Any,
    ) -> CausalLMOutput:  # fmt: skip
        """Log-probabilities [B, T, V] float32, averaged over the live shards.

        Raises:
            ModelError: no shard is live, or states or caches are asked for, of which every shard has its own.
        """
        live = self.serving()
        if not live:
            raise ModelError("every shard of this ensemble has failed", "a live shard", "train it again")
        for name in ("past_key_values", "output_hidden_states", "output_attentions", "inputs_embeds"):
            if more.get(name):
                raise ModelError(
                    f"{name} asked of a sliced ensemble", "input_ids and attention_mask", "its shards differ"
                )
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        takes = inspect.signature(self.base.forward).parameters
        own = "logits_to_keep" in takes
        if attention_mask is not None and "position_ids" in takes:  # absolute positions count from the first real token
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        if own:
            inputs["logits_to_keep"] = logits_to_keep
        parts = []
        for shard, prefix in live:
            self.activate(shard, prefix)
            logits = self.base(**inputs).logits
            if not own and isinstance(logits_to_keep, int) and logits_to_keep:
                logits = logits[:, -logits_to_keep:]
            parts.append(logits.float().log_softmax(-1))
        return CausalLMOutput(logits=average(torch.stack(parts), str(self.config.average)))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Whole sequences: every shard would need a cache of its own."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask"), "logits_to_keep": 1}

    def get_input_embeddings(self) -> Any:
        """Of the base."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Of the base."""
        return self.base.get_output_embeddings()

    # -- storage --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """config.json, model.safetensors (tied tensors once) and plan.json."""
        self.config.architectures = ["SlicedLM"]
        self.config.dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        self.config.save_pretrained(folder)
        seen: dict[int, str] = {}
        tensors = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            if seen.setdefault(id(tensor), name) == name:
                tensors[name] = tensor.detach().cpu().contiguous()
        with storage(Path(folder)):
            save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})
        if self.plan is not None:
            requests = self.requests.tolist()
            kept = self.plan if self.plan.requests().tolist() == requests else self.plan.without((), requests)
            kept.save(Path(folder) / PLAN)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *_: Any, config: SlicedConfig | None = None, **options: Any) -> Any:
        """Read a saved ensemble; every tensor must be there.

        Raises:
            ModelError: a tensor is missing, unknown or of another shape.
        """
        model = cls(config if config is not None else SlicedConfig.from_pretrained(folder))
        stored = load_file(Path(folder) / WEIGHTS)
        own = model.state_dict(keep_vars=True)
        firsts: dict[int, str] = {}
        needed = {name for name, tensor in own.items() if firsts.setdefault(id(tensor), name) == name}
        wrong = sorted(needed ^ stored.keys()) or [n for n in sorted(needed) if own[n].shape != stored[n].shape]
        if wrong:
            raise ModelError(
                f"'{folder}': tensor {wrong[0]} is missing, unknown or of another shape", "a whole ensemble"
            )
        dtype = options.get("dtype")
        if dtype in (None, "auto"):
            dtype = next(tensor.dtype for tensor in stored.values() if tensor.is_floating_point())
        model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        own = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name in needed:
                own[name].copy_(stored[name])
        if (Path(folder) / PLAN).exists():
            model.plan = DeletionPlan.load(Path(folder) / PLAN)
        if options.get("device_map") is not None and torch.cuda.is_available():
            model = model.to("cuda")
        info: dict[str, list[str]] = {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [],
            "error_msgs": [],
        }
        return (model, info) if options.get("output_loading_info") else model


def average(logp: Tensor, kind: str) -> Tensor:
    """One distribution from several; the result may need a softmax to sum to one.

    Args:
        logp: [m, ..., V] log-probabilities.
        kind: `log-probabilities` (their mean), or `probabilities` (the log of the mean), which shards with prefixes of
            different lengths, and so of different sharpness, may need.
    """
    if kind == "log-probabilities":
        return logp.mean(0)
    if kind == "probabilities":
        return torch.logsumexp(logp, 0) - torch.log(torch.tensor(float(logp.shape[0])))
    raise ConfigError(f"average='{kind}'", "log-probabilities or probabilities")


AutoConfig.register(SlicedConfig.model_type, SlicedConfig)
AutoModelForCausalLM.register(SlicedConfig, SlicedLM)
