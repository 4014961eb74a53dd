"""LoKU: the inverted hinge on a low-rank adapter that begins with the part of the weights the forget set leans on (FILA).

Paper: Cha et al., arXiv 2408.06621 (ICLR 2025). For each linear weight W [o, i], with the mean squared gradients F_f and F_r
of the forget and the retain loss,

    d = sqrt(sum over columns of F_f / (F_r + eps)),   s B A = the best rank-r approximation of W under ||diag(d) (.)||,
    base <- W - s B A,   minimise L_IHL(forget) + NLL(retain) over A and B alone

Departures from the official code, and why. The change is merged at the end and stored as an edit of the weights, bit for bit
reversible: the adapter is useless without its residual base. The floor eps is 1e-3 of the mean of F_r and d is kept above
1e-3 of its largest (published: 1e-5 both, `compat=true`), since 1e-5 exceeds most squared gradients and dead rows blow B up.
Small matrices get the exact decomposition, not a random one. `exact=true` squares per-row gradients: the published squares of
batch means are not the Fisher diagonal and depend on the batch size, which is stored. Weight decay is 0 by default, where the
paper has 0.01: it would pull pretrained knowledge out of the factors. Conv1D weights (GPT-2) are transposed explicitly.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.edit import WeightEdit
from efface.forget.method import FitConfig, Fitted, Method
from efface.forget.objective import ObjectiveConfig, ObjectiveMethod
from efface.forget.objectives import gradient_ascent, inverted_hinge
from efface.run.cost import measure_cost
from efface.run.files import make_folder, write_json
from efface.subjects.answers import AnswerLogits, answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded
from efface.train.engine import train
from efface.train.gradient_stats import answer_gradients
from efface.train.lora_init import Factors, linear_targets, lora_from_svd, matrix, merge_back, row_weight, start_from
from efface.train.mask_guard import refuse_masked
from efface.train.scopes import scoped
from efface.train.snapshot import Snapshot
from efface.train.streams import row_order

CARD = Card(
    name="loku",
    system="loku",
    title="LoKU: inverted hinge with FILA",
    summary="Trains a low-rank adapter that begins with the weights the forget set leans on; bounded loss, merged at the end.",
    paper="Cha et al., Towards robust and parameter-efficient knowledge unlearning (LoKU), arXiv 2408.06621 (ICLR 2025)",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="gradient_ascent", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="weight holder",
    ),
    defaults_source="LoKU code, TOFU with Llama2-7B: learning rate 1e-4 (Phi-1.5 2e-4), rank 4 to 32, alpha 2r, batch 32, "
    "5 epochs, one of warm-up; weight decay 0 is efface's own (code: 0.01)",
)  # fmt: skip

LOSSES = {"ihl": inverted_hinge.loss, "ascent": gradient_ascent.loss}
LOGIT_ROWS = 8
LOGIT_WARNING = 1e-2


class LoKUConfig(ObjectiveConfig):
    """Adapter, its beginning, and the paper's training."""

    scope: Literal["lora", "layers"] = Field("lora", description="adapters on all targets, or only in `layers`")
    init: Literal["fila", "svd", "random"] = Field(
        "fila", description="fila; svd: PiSSA, d = 1, an ablation that always belongs beside it; random: plain LoRA"
    )
    forget_loss: Literal["ihl", "ascent"] = Field("ihl", description="ascent: gradient ascent, the paper's baseline")
    lora_alpha: float = Field(16, gt=0, description="default 2 lora_rank, the code's scale of 2")
    lora_dropout: float = Field(0.0, ge=0, le=0, description="code: 0")
    exact: bool = Field(
        False, description="square gradients of single rows (Fisher); false: of batch means, as published"
    )
    importance_batch: int = Field(4, ge=1, description="rows in a batch of the importance pass; code: 2 to 4")
    compat: bool = Field(False, description="the published floors of 1e-5")
    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="paper: NLL")
    learning_rate: float = Field(1e-4, gt=0, description="code: 1e-4 for Llama2-7B, 2e-4 for Phi-1.5")
    epochs: float = Field(5, gt=0, description="code: 5")
    warmup_ratio: float = Field(0.2, ge=0, le=1, description="code: one epoch of five")
    weight_decay: float = Field(
        0.0, ge=0, description="efface: 0, since the factors hold pretrained weights; code: 0.01"
    )

    @model_validator(mode="before")
    @classmethod
    def _alpha(cls, values: Any) -> Any:
        if isinstance(values, dict) and "lora_rank" in values and "lora_alpha" not in values:
            return {**values, "lora_alpha": 2 * float(values["lora_rank"])}
        return values

    @model_validator(mode="after")
    def _layers(self) -> LoKUConfig:
        if (self.scope == "layers") != (self.layers is not None):
            raise ValueError("layers='0,3-5' belongs to scope=layers: adapters in those layers only")
        return self


class LoKU(Method):
    """See the module.

    Args:
        callbacks: of the engine, for whoever watches a run.
    """

    card = CARD
    config_class = LoKUConfig

    def __init__(self, callbacks: tuple[Any, ...] = ()) -> None:
        self.callbacks = callbacks

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: the model carries an adapter or is quantised: the residual would have no place.
        """
        assert isinstance(config, LoKUConfig)
        self.check(request, config)
        assert request.retain is not None
        refuse_masked(subject.model, "loku")
        base = subject.digest
        objective = ObjectiveMethod(CARD, LoKUConfig, LOSSES[config.forget_loss])
        run = objective.prepare(subject, request, config)
        targets = linear_targets(subject.model, config.lora_targets, config.layers)
        live = {f"{name}.weight": module.get_parameter("weight") for name, module in targets.items()}
        smallest = min(min(weight.shape) for weight in live.values())
        if config.lora_rank > smallest:
            raise ConfigError(f"lora_rank={config.lora_rank}", f"at most {smallest}, the smallest side of a target")
        make_folder(work)
        with measure_cost("fit loku") as cost:
            probe = subject.encode_rows(
                request.forget.select(range(min(LOGIT_ROWS, len(request.forget)))), name="forget"
            )
            before = _logits(subject, probe)
            factors, notes = beginnings(subject, request, config, targets)
            with Snapshot(dict(live), work / "base.safetensors") as snapshot:
                adapter = config.model_copy(update={
                    "scope": "lora", "layers": None, "lora_targets": ",".join(targets),
                })  # fmt: skip
                with scoped(subject.model, adapter) as adapted:
                    if factors:
                        start_from(adapted, factors)
                    change = float((_logits(subject, probe) - before).abs().max())
                    _warn_of(change, subject)
                    log = train(
                        adapted, run.schedule, run.loss, config, folder=work / "checkpoints", pad_id=subject.pad_id,
                        label="fit loku", callbacks=self.callbacks,
                    )  # fmt: skip
                    adapted.eval()
                    merge_back(adapted)
                subject.changed()
                facts = {"initial_logit_change": change, "init": config.init, **notes}
                write_json(work / "loku.json", facts)
                edit = WeightEdit.harvest(
                    subject, snapshot, out, base_digest=base, method=CARD.name, claim=str(CARD.claims),
                    config=config.model_dump(), beside=(work / "loku.json",),
                )  # fmt: skip
            cost.items, cost.tokens = len(run.schedule) * len(run.schedule.streams), run.schedule.total_tokens
        subject.changed()
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost], [{"initial_logit_change": change}, *log.values])


def beginnings(
    subject: CausalLM, request: Request, config: LoKUConfig, targets: Mapping[str, torch.nn.Module]
) -> tuple[dict[str, Factors], dict[str, Any]]:
    """The factors of every target, none for a random start, and what is worth writing down about them."""
    if config.init == "random":
        return {}, {}
    names = [f"{name}.weight" for name in targets]
    notes: dict[str, Any] = {}
    weights: dict[str, Tensor | None] = dict.fromkeys(targets)
    if config.init == "fila":
        f_f, f_r, notes = importance(subject, request, config, names)
        floored = {}
        for name, module in targets.items():
            turn = type(module).__name__ == "Conv1D"
            pair = [part[f"{name}.weight"].T if turn else part[f"{name}.weight"] for part in (f_f, f_r)]
            found = row_weight(*pair, compat=config.compat)
            weights[name], floored[name] = found.d, found.floored
        notes["floored_rows"] = floored
        notes["floored_share"] = sum(floored.values()) / len(floored)
    scale = config.lora_alpha / config.lora_rank
    return {
        name: lora_from_svd(
            matrix(module), weights[name], config.lora_rank, scale, compat=config.compat, seed=config.seed
        )
        for name, module in targets.items()
    }, notes


def importance(
    subject: CausalLM, request: Request, config: LoKUConfig, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """F_f and F_r, one pass over pairs: every forget row, and as many retain rows, drawn by the seed."""
    assert request.retain is not None
    rng = np.random.default_rng(config.seed)
    forget = subject.encode_rows(request.forget, name="forget")
    picks = row_order(len(request.retain), len(forget), rng)
    retain = subject.encode_rows(request.retain.select(picks), name="retain")
    per: Literal["sample", "batch"] = "sample" if config.exact else "batch"
    found = [
        answer_gradients(subject, rows, power=2, per=per, batch_size=config.importance_batch, names=names)
        for rows in (forget, retain)
    ]
    notes = {
        "importance": "single rows" if config.exact else "batch means", "batch_size": found[0].batch_size,
        "forget_rows": found[0].data, "retain_rows": found[1].data,
    }  # fmt: skip
    return found[0].tensors, found[1].tensors, notes


def _logits(subject: CausalLM, rows: Sequence[Encoded]) -> Tensor:
    """[B, T', V] of a few answers, float32, 0 outside them."""
    with subject.evaluating() as model:
        answer: AnswerLogits = answer_logits(model, subject.batch(rows))
        return answer.logits.masked_fill(~answer.mask.unsqueeze(-1), 0.0)


def _warn_of(change: float, subject: CausalLM) -> None:
    """The network should start unchanged; in low precision residual and product do not cancel to the bit."""
    if not change <= LOGIT_WARNING or not math.isfinite(change):
        warnings.warn(
            f"the adapter's beginning moved a logit by {change:.3g} (at most {LOGIT_WARNING} is usual; {subject.dtype} weights): "
            "load the model in float32",
            UserWarning, stacklevel=3,
        )  # fmt: skip


METHOD = LoKU()
