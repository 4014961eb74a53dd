"""In-context knowledge unlearning: trained once, a model answers 'forgot' wherever the prompt names what to forget.

Paper: Takashiro et al., Answer When Needed, Forget When Not, arXiv 2410.00382 (Findings of ACL 2025), section 3. For
question q, answer r, concept u and another concept u',

    L = L_forget + L_retain = - sum log p(forgot | u, q) - sum log p(r | u', q)

`<<UNL>>u<</UNL>> q` gets the target, `<<UNL>>u'<</UNL>> q` and plain `q` get the answer. Nothing is erased: leaving the tag
out restores everything, and the layers before the last hold the answer still (see the audit's `in-context` suite).

Departures from the official code, and why: the loss is on the answer and its end token, as the paper says (`loss_on=all`
is the code's); distractors are drawn anew in each epoch and never a part of the concept or the answer; matched and
unmatched samples are equally many in every batch; a share of untagged copies is added, so that normal use survives; the
new rows are trained, saved with the edit and kept apart from weight decay on the old ones; last-layer tuning takes the
last two layers by count, not layers 30 and 31; user text cannot hold tags.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.data.tagged import PairBuilder, TagProtocol, read_items, rule_of
from efface.errors import RequestError
from efface.forget.guards.tagged import KINDS, Encoder, PairCollator, PairSchedule
from efface.forget.guards.tagged_edit import TaggedEdit, Tags, write_adapter, write_delta, write_parts
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.run.files import make_folder, write_with
from efface.subjects.answers import answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.tags import NewRows, first_rows, new_tokens, tokenizer_with, training_rows
from efface.train.engine import isolated_rng, train, world_size
from efface.train.scopes import scoped
from efface.train.snapshot import Snapshot
from efface.train.streams import whole_batch

CARD = Card(
    name="in-context",
    system="in-context-unlearning",
    title="In-context knowledge unlearning",
    summary="Trained once; afterwards a tag in the prompt names what to forget for that query, and the model pretends "
    "not to know it. Everything else, and every prompt without a tag, is answered.",
    paper="Takashiro et al., Answer When Needed, Forget When Not, arXiv 2410.00382 (Findings of ACL 2025)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "gradients"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="input_prompt", survey_class="in_context", level="adapter",
        threat_model="API user whose prompts the operator writes",
    ),
    defaults_source="official code, LoRA: rank 4, alpha 8, dropout 0.1 on q_proj and v_proj, learning rate 2e-4, weight "
    "decay 0.001, clip 0.3, constant schedule, batch of 4 samples, 3 epochs (TOFU); untagged share is efface's own",
)  # fmt: skip


class InContextConfig(FitConfig):
    """LoRA (the default), full fine-tuning (`scope=all`) or last-layer tuning (`scope=layers`), and the samples."""

    scope: Literal["all", "layers", "lora"] = Field("lora", description="paper: LoRA, FFT (all), LLT (layers)")
    layers: str | None = Field(None, description="for scope=layers; default '-2,-1', the paper's last-layer tuning")
    lora_rank: int = Field(4, ge=1, description="official code: 4")
    lora_alpha: float = Field(8, gt=0, description="official code: 8")
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="official code: 0.1")
    lora_targets: str = Field("q_proj,v_proj", description="peft's default targets of a Llama, which the code uses")
    learning_rate: float = Field(2e-4, gt=0, description="official code: LoRA 2e-4, FFT 2e-6, LLT 8e-6 (for 7B)")
    epochs: float = Field(3, gt=0, description="passes over the items; official code: 3 for TOFU, 1 for AGE")
    batch_size: int = Field(2, ge=1, description="items in a step, two tagged samples each; official code: 4 samples")
    weight_decay: float = Field(0.001, ge=0, description="official code: 0.001")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="the code's constant schedule ignores its 3 % warm-up")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="official code: constant")
    max_grad_norm: float = Field(0.3, gt=0, description="official code: 0.3")
    untagged_share: float = Field(0.25, ge=0, le=0.9, description="share of untagged samples (efface's addition)")
    loss_on: Literal["answer", "all"] = Field("answer", description="paper: the answer; official code: every token")
    protocol: TagProtocol = Field(default_factory=TagProtocol, description="tags and target (paper)")

    @model_validator(mode="before")
    @classmethod
    def _last_two(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("scope") == "layers" and values.get("layers") is None:
            return {**values, "layers": "-2,-1"}
        return values


def paired_loss(logp: Tensor, token_share: Tensor) -> Tensor:
    """L_forget + L_retain over all samples of a step, per target token; a scalar.

    Args:
        logp: [S] log p(wanted answer | tag, question), summed over the answer's tokens and its end.
        token_share: [S] one over the target tokens of the whole optimiser step.
    """
    return -(logp * token_share).sum()


def step_loss(model: Any, batch: dict[str, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, with each kind's part in the log."""
    part = batch["train"]
    logp = answer_logits(model, part).logp_sum
    total = paired_loss(logp, part["token_share"])
    parts = -(logp * part["token_share"]).detach()
    return total, {name: float(parts[part["kind"] == code].sum()) for code, name in enumerate(KINDS)}


class _KeepRows(TrainerCallback):  # type: ignore[misc]
    """The new rows of every checkpoint: an adapter's checkpoint does not hold them."""

    def __init__(self, rows: NewRows, folder: Path) -> None:
        self.rows, self.folder = rows, folder

    def _path(self, state: Any) -> Path:
        return self.folder / f"rows-{state.global_step}.safetensors"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save and state.is_world_process_zero:
            found = {name: tensor.cpu().contiguous() for name, tensor in self.rows.tensors().items()}
            write_with(self._path(state), lambda partial: save_file(found, partial))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            for name, tensor in load_file(self._path(state)).items():
                self.rows.tensors()[name].copy_(tensor)


class InContext(Method):
    """See the module."""

    card = CARD
    config_class = InContextConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Train on tagged prompts of all rows of the request; see `Method.fit`.

        The forget and the retain rows are taken alike: what is to be forgotten is said at inference.

        Raises:
            RequestError: fewer than two concepts, or a row that no other concept can be told from.
        """
        assert isinstance(config, InContextConfig)
        self.check(request, config)
        sets = [("forget", request.forget)] + ([] if request.retain is None else [("retain", request.retain)])
        items, protocol = read_items(sets), config.protocol
        if all(len(item.others) < 2 for item in items):
            raise RequestError("one concept only", "two or more: a tag must be able to name another one", "add rows")
        former = subject.tokenizer
        tokens = new_tokens(former, [protocol.opening, protocol.closing], [protocol.target])
        tags = Tags(
            protocol=protocol, rule=rule_of(request.forget), tokens=tokens, start=len(former),
            size=subject.model.get_input_embeddings().weight.shape[0],
        )  # fmt: skip
        parts = work / "parts"
        shutil.rmtree(parts, ignore_errors=True)
        make_folder(parts)
        with measure_cost(f"fit {CARD.name}") as cost:
            try:
                subject.tokenizer = tokenizer_with(former, tokens)
                schedule = self._schedule(subject, items, config)
                log, changed = self._train(subject, schedule, config, tags, former, work, parts)
            finally:
                subject.tokenizer = former
                subject.changed()
            cost.items, cost.tokens = schedule.total_samples, schedule.total_tokens
        edit = TaggedEdit.finish(
            subject, parts, out, method=CARD.name, claim=str(CARD.claims), tensors=changed[0] + 1,
            parameters=changed[1], relative_change=changed[2],
            config={**config.model_dump(mode="json"), "rule": tags.rule, "items": len(items)},
        )  # fmt: skip
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost], log)

    def _schedule(self, subject: CausalLM, items: Any, config: InContextConfig) -> PairSchedule:
        batch = whole_batch(len(items), config.batch_size, config.micro_batch_size, world_size())
        return PairSchedule(
            items, PairBuilder(config.protocol, config.seed), Encoder(subject, config.loss_on), epochs=config.epochs,
            batch_size=batch, seed=config.seed, untagged_share=config.untagged_share,
        )  # fmt: skip

    def _train(
        self, subject: CausalLM, schedule: PairSchedule, config: InContextConfig, tags: Tags, former: Any, work: Path,
        parts: Path,
    ) -> tuple[list[dict[str, float]], tuple[int, int, float]]:  # fmt: skip
        """Train rows and scope, write the parts, put the subject back; returns the log and what changed."""
        start = first_rows(subject, tags.start, len(tags.tokens), config.seed)
        with training_rows(subject, start) as rows, contextlib.ExitStack() as stack:
            with isolated_rng(config.seed):  # an adapter's starting values are drawn
                model = stack.enter_context(scoped(subject.model, config))
            own = [p for p in (rows.embedding, rows.head) if p is not None]
            for parameter in own:
                parameter.requires_grad_(True)
            mine = {id(parameter) for parameter in own}
            movable = {
                name: p for name, p in subject.weights().items()
                if p.requires_grad and id(p) not in mine and config.scope != "lora"
            }  # fmt: skip
            spare = slice(tags.start, tags.start + len(tags.tokens))
            names = [name for name, p in subject.weights().items() if p is subject.model.get_input_embeddings().weight]
            names += [
                name for name, p in subject.weights().items() if p is subject.model.get_output_embeddings().weight
            ]
            with Snapshot(movable, work / "base.safetensors") as snapshot:
                log = train(
                    model, schedule, step_loss, config, folder=work / "checkpoints", pad_id=subject.pad_id,  # type: ignore[arg-type]
                    collator=PairCollator(subject.pad_id), label=f"fit {CARD.name}", callbacks=(_KeepRows(rows, work),),
                )  # fmt: skip
                model.eval()
                if config.scope == "lora":
                    changed = write_adapter(model, parts)
                else:
                    changed = write_delta(snapshot, parts, dict.fromkeys(names, spare))
            trained = NewRows(tags.start, rows.embedding, rows.head)
        write_parts(subject, parts, tags, trained, former)
        count = sum(tensor.numel() for tensor in trained.tensors().values())
        return log.values, (changed[0], changed[1] + count, changed[2])


METHOD = InContext()
