"""Who's Harry Potter: find out what a model that never read the text would say, and train the model to say that.

Paper: Eldan and Russinovich, Who's Harry Potter? Approximate unlearning in LLMs, arXiv 2310.02238 (2023), section 2. M_r is M
trained further on the text; b' is a block b with its anchor terms replaced by generic ones. At every token of b,

    v_generic = v_base - alpha relu(v_reinf - v_base),   v_base = M(b'), v_reinf = M_r(b),   label = argmax v_generic

and M is fine-tuned on b with these labels. `mode=decode` does no fine-tuning: M(b) takes the place of M(b'), and the rule holds
at every step of decoding (MUSE, arXiv 2407.06460). "Approximate" is the authors' word: the method is known to leak under
adversarial prompting and in other languages.

There is no official code; the details are ours. Logit rows are centred first. The whole span of a term counts at its first
occurrence in a block, no later one does, and from there on the first tokens of its translation are lowered
by `translation_penalty` (the paper says that they are lowered, not by how much). Questions with answers are blocks of their own
and only their answers count.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.anchors import Anchors, build_anchors, read_anchors
from efface.data.request import Request
from efface.errors import CheckFailed, ConfigError
from efface.forget.blocks import Block, build_blocks
from efface.forget.edit import Edit
from efface.forget.generic_labels import Labels, make_labels
from efface.forget.guards.logit_ensemble import Ensemble, EnsembleEdit, edited_copy
from efface.forget.method import FitConfig, Fitted, train_edit
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod
from efface.forget.retain import retain_stream
from efface.run.cost import measure_cost
from efface.subjects.answers import AnswerLogits
from efface.subjects.causal_lm import CausalLM
from efface.train.streams import Stream
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="who-is-harry-potter",
    system="who-is-harry-potter",
    title="Who's Harry Potter",
    summary="Fine-tunes on what the model would say had it never read the text: book terms translated, book-specific logits "
    "taken away. As a guard, takes them away while decoding.",
    paper="Eldan and Russinovich, Who's Harry Potter? Approximate unlearning in LLMs, arXiv 2310.02238 (2023)",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="distillation", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="paper, Llama-2-7B: alpha 5; reinforce at 3e-6 for 3 epochs, unlearn at 1e-6 for 2; batch 8 x "
    "accumulation 16, blocks of 512 (from memory and public summaries)",
)  # fmt: skip

FEW, NOISE = 0.05, 0.10
"""Shares of changed labels: below the first nothing is unlearnt, above the second on other text the labels are noise."""


class WhoIsHarryPotterConfig(ObjectiveConfig):
    """How labels are made, and what is done with them."""

    mode: Literal["distil", "decode"] = Field(
        "distil", description="fine-tune on the labels, or correct while decoding (MUSE)"
    )
    alpha: float = Field(5.0, ge=0, description="paper: 5. 0: no reinforced model, anchors alone")
    anchors: str | None = Field(
        None, description="JSON file of term: generic term, or 'build': from forget and retain set"
    )
    block_tokens: int = Field(512, ge=4, description="block of plain text; paper: 512")
    translation_penalty: float = Field(
        10.0, ge=0, description="taken off the logits of translations of terms seen (ours)"
    )
    reinforce_learning_rate: float | None = Field(
        None, gt=0, description="default: 3 x learning_rate, the paper's ratio (3e-6 to 1e-6)"
    )
    reinforce_epochs: float = Field(3, gt=0, description="paper: 3")
    reinforce_scope: Literal["all", "lora"] = Field("all", description="what moves in the reinforced model; paper: all")
    learning_rate: float = Field(1e-6, gt=0, description="paper: 1e-6")
    epochs: float = Field(2, gt=0, description="paper: 2")
    batch_size: int = Field(128, ge=1, description="paper: 8 x accumulation 16")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="the paper names none")


def distil_loss(answer: AnswerLogits, label: Tensor, counted: Tensor, token_share: Tensor) -> Tensor:
    """Cross-entropy to the labels, summed over the counted tokens and divided by the answer tokens of the step.

    Args:
        answer: logits [B, T', V] on the original text.
        label: [B, T'] token ids.
        counted: [B, T'] 1 where the token counts; 0 elsewhere and in padding.
        token_share: [B] one over the answer tokens of the step.
    """
    logp = answer.logits.log_softmax(-1).gather(-1, label.unsqueeze(-1)).squeeze(-1)  # [B, T']
    return -(logp.masked_fill(~(answer.mask & counted.bool()), 0.0).sum(-1) * token_share).sum()


def loss(config: WhoIsHarryPotterConfig, batch: ForgetBatch) -> Tensor:
    """The objective on one batch; the labels travel with the rows."""
    assert batch.answer is not None
    return distil_loss(batch.answer, batch.extras["label"], batch.extras["counted"], batch.token_share)


class WhoIsHarryPotter(ObjectiveMethod):
    """See the module."""

    plain = False  # labels come from a second model, which `fit` trains first

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`. Two models are in memory while labels are made.

        Raises:
            ConfigError: settings of one mode in the other, or neither a reinforced model nor anchors.
            RequestError: an anchor stands in what is to be kept, or the text is shorter than one block.
            CheckFailed: no label is left to train on.
        """
        assert isinstance(config, WhoIsHarryPotterConfig)
        self.check(request, config)
        anchors = _anchors(request, config)
        _refuse_senseless(config, anchors)
        blocks = build_blocks(subject, request.forget, anchors, block_tokens=config.block_tokens, name="forget")
        reinforced = self._reinforced(subject, blocks, config, work) if config.alpha else None
        if config.mode == "decode":
            assert reinforced is not None
            fitted = _decode(subject, reinforced, config, out)
        else:
            fitted = self._distil(subject, request, blocks, reinforced, anchors, config, work, out)
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(fitted.edit, [*(reinforced.costs if reinforced else []), *fitted.costs], fitted.log)

    def _reinforced(
        self, subject: CausalLM, blocks: Sequence[Block], config: WhoIsHarryPotterConfig, work: Path
    ) -> Fitted:
        """M_r as an edit; a killed fit finds it where it was left."""
        folder = work / "reinforced"
        if (folder / "edit.json").exists():
            return Fitted(Edit.load(folder), [])
        rate = config.reinforce_learning_rate or 3 * config.learning_rate
        shared = {name: getattr(config, name) for name in FitConfig.model_fields}
        how = FitConfig(**shared | {
            "learning_rate": rate, "epochs": config.reinforce_epochs, "scope": config.reinforce_scope, "layers": None,
            "mask": None,
        })  # fmt: skip
        rows = [block.row for block in blocks]
        made = train_edit(
            self, subject, supervised_schedule(rows, how), answer_loss, how, work=work / "reinforce", out=folder
        )
        for cost in made.costs:
            cost.phase = f"reinforce {CARD.name}"
        return made

    def _distil(
        self, subject: CausalLM, request: Request, blocks: list[Block], reinforced: Fitted | None, anchors: Anchors,
        config: WhoIsHarryPotterConfig, work: Path, out: Path,
    ) -> Fitted:  # fmt: skip
        with measure_cost(f"label {CARD.name}") as cost:
            other = edited_copy(subject, reinforced.edit) if reinforced else None
            labels = make_labels(subject, other, blocks, config.alpha, config.translation_penalty)
            found = {
                "anchors": len(anchors),
                "changed": labels.differs,
                "changed_own": labels.moved,
                "entropy": labels.entropy,
            }
            if request.retain is not None:
                background = make_labels(
                    subject,
                    other,
                    _background(subject, request.retain, config),
                    config.alpha,
                    config.translation_penalty,
                )
                found["changed_background"] = background.moved
            del other
        _warn(found)
        streams = {"forget": _stream(blocks, labels)}
        if config.retain_term != "none" and request.retain is not None:
            keep = subject.encode_rows(request.retain, name="retain")
            streams["retain"] = retain_stream(config.retain_term, subject, keep, config.retain_top_k)
        run = self.assemble(subject, request, streams, config)
        fitted = train_edit(
            self, subject, run.schedule, run.loss, config, work=work / "distil", out=out, mask_rows=run.mask_rows
        )
        return Fitted(fitted.edit.with_findings("labels", found), [cost, *fitted.costs], [found, *fitted.log])


def _stream(blocks: Sequence[Block], labels: Labels) -> Stream:
    counted = [torch.tensor(block.counted[block.row.n_prompt :], dtype=torch.uint8) for block in blocks]
    if not any(bool(each.any()) for each in counted):
        raise CheckFailed("no token is left to train on: every one belongs to a later occurrence of an anchor")
    return Stream([block.row for block in blocks], {"label": labels.label, "counted": counted})


def _background(subject: CausalLM, data: Dataset, config: WhoIsHarryPotterConfig, limit: int = 64) -> list[Block]:
    """Blocks of the retain set, at most `limit`, evenly spaced."""
    some = data.select(range(0, len(data), -(-len(data) // limit)))
    blocks = build_blocks(subject, some, Anchors({}), block_tokens=config.block_tokens, name="retain", short=True)
    return blocks[:: -(-len(blocks) // limit)]


def _anchors(request: Request, config: WhoIsHarryPotterConfig) -> Anchors:
    """The dictionary; none of its terms stands in what is to be kept."""
    if config.anchors is None:
        return Anchors({})
    kept = {name: data for name, data in request.evaluation_sets().items() if name not in {"forget", "holdout"}}
    if request.retain is not None:
        kept["retain set"] = request.retain
    texts = {name: [f"{q} {a}" for q, a in zip(d["question"], d["answer"], strict=True)] for name, d in kept.items()}
    if config.anchors != "build":
        anchors = read_anchors(config.anchors)
    else:
        own = [f"{q} {a}" for q, a in zip(request.forget["question"], request.forget["answer"], strict=True)]
        built = build_anchors(own, texts.get("retain set", []))
        everything = "\n".join(text for rows in texts.values() for text in rows)
        anchors = Anchors({
            term: generic for term, generic in built.terms.items() if not Anchors({term: generic}).first_in(everything)
        })  # fmt: skip
    for name, rows in texts.items():
        anchors.refuse_in(rows, name)
    return anchors


def _refuse_senseless(config: WhoIsHarryPotterConfig, anchors: Anchors) -> None:
    if config.alpha == 0 and (config.mode == "decode" or not len(anchors)):
        raise ConfigError(
            "alpha=0 without anchors", "a reinforced model (alpha > 0), anchors, or both", "set one of them"
        )
    if config.mode == "decode" and len(anchors):
        raise ConfigError("anchors with mode=decode", "none: no text is translated while decoding", "leave anchors out")
    if config.mode == "decode" and config.retain_term != "none":
        raise ConfigError(
            f"retain_term={config.retain_term} with mode=decode", "none: nothing is fine-tuned", "leave it out"
        )


def _decode(subject: CausalLM, reinforced: Fitted, config: WhoIsHarryPotterConfig, out: Path) -> Fitted:
    with measure_cost(f"guard {CARD.name}") as cost:
        ensemble = Ensemble(combine="reinforced", alpha=config.alpha)
        edit = EnsembleEdit.finish(
            subject, reinforced.edit, ensemble, out, method=CARD.name, config=config.model_dump(mode="json")
        )
    return Fitted(edit, [cost], reinforced.log)


def _warn(found: dict[str, Any]) -> None:
    """Say where the labels teach nothing, or noise."""
    for name, what in (("changed", "the text"), ("changed_own", "what the model says itself")):
        if found[name] < FEW:
            warnings.warn(
                f"only {found[name]:.1%} of the labels differ from {what}: there is little to unlearn from; raise "
                "reinforce_learning_rate, reinforce_epochs or alpha, or give anchors",
                stacklevel=4,
            )
    if found.get("changed_background", 0.0) > NOISE:
        warnings.warn(
            f"{found['changed_background']:.1%} of the labels on the retain set changed too: the reinforced model is saturated "
            "and the labels are noise; lower reinforce_learning_rate, reinforce_epochs or alpha",
            stacklevel=4,
        )


METHOD = WhoIsHarryPotter(CARD, WhoIsHarryPotterConfig, loss)
