"""LOL, with CD, DoLa and ICD: at inference, push a model away from an amateur that knows the forget set by heart.

Paper: Chen et al., Lower Layer Matters, arXiv 2408.08769 (2024), on CD (arXiv 2210.15097), DoLa (2309.03883) and ICD
(2312.15710). With b the base, a the amateur, l a lower layer and s an instruction,

    S = keep log p_b + strength (log p_b - log p_a) + omega (log p_b^l - log p_a^l) + gamma (log p_b(. | s, x) - log p_b)

and softmax(S) is the model. The amateur is the base fine-tuned on the forget set; for the published use, a truthfulness
decoder, that set holds falsehoods and keep is 0.

There is no official code of LOL; its weights, layer and instruction are ours. `keep=1`, the default, is ours too, for unlearning:
without it a prompt on which both models agree is answered at random among the plausible tokens. The instruction is tokenised
by itself and stands before the whole prompt, a chat template's included. Other departures: `contrastive_decoding`.

The amateur knows the forgotten better than the base does, and the edit holds it: never publish either.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError, ModelError
from efface.forget.edit import Edit
from efface.forget.guards.contrastive_model import Contrast, ContrastiveModel, exit_layers
from efface.forget.guards.guard_edit import GuardEdit
from efface.forget.guards.logit_ensemble import edited_copy, refuse_other_tokens
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.run.cost import measure_cost
from efface.run.files import read_json, write_json
from efface.subjects.causal_lm import CausalLM, load_causal_lm
from efface.subjects.guarded import is_guarded
from efface.subjects.hooks import layers_of
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="lol",
    system="lol",
    title="Contrastive decoding (LOL, ICD, DoLa, CD)",
    summary="Takes away what a copy fine-tuned on the forget set adds, at the last and at a lower layer, while decoding; also "
    "the truthfulness decoders it comes from. The copy knows the secret better than the model: keep it to yourself.",
    paper="Chen et al., Lower Layer Matters, arXiv 2408.08769 (2024)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "gradients", "second-model-at-inference"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="decoding_contrast", survey_class="decoding", level="logits",
        threat_model="API user",
    ),
    defaults_source="omega 0.5, gamma 0.5, the middle layer and keep 1: ours; amateur as ICD's: LoRA on all linear layers, "
    "learning rate 5e-4, 1 to 5 epochs (from memory)",
)  # fmt: skip

AMATEUR, READY = "amateur", "amateur.json"


class LOLConfig(Contrast, FitConfig):
    """The contrast, and the training of the amateur."""

    amateur: str | None = Field(
        None,
        description="hub id or folder of a ready amateur with the model's tokenizer; default: trained on the forget set",
    )
    instruction: str = Field("Answer truthfully.", description="lol: s; it stands before the prompt (ours)")
    scope: Literal["lora", "all", "layers"] = Field("lora", description="what moves in the amateur; ICD: LoRA")
    learning_rate: float = Field(5e-4, gt=0, description="of the amateur; ICD: 5e-4 (from memory)")
    epochs: float = Field(3, gt=0, description="of the amateur; ICD: 1 to 5 (from memory)")

    @field_validator("gamma")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        """LOL's gamma may be 0; the scopes' key of that name (WAGLE's masks) does not exist here."""
        return value


class ContrastiveEdit(GuardEdit):
    """`guard.json`, and the amateur: the edit that makes it out of the model, or where a ready one lies."""

    kind = "contrastive-decoding"

    @classmethod
    def build(cls, subject: CausalLM, folder: Path, config: dict[str, Any], seal: str) -> ContrastiveModel:
        """See `GuardEdit.build`.

        Raises:
            ModelError: the ready amateur is another one now, or has other tokens.
        """
        contrast = Contrast.model_validate({name: config[name] for name in Contrast.model_fields})
        amateur = None
        if (folder / AMATEUR).is_dir():
            amateur = edited_copy(subject, Edit.load(folder / AMATEUR))
        elif (folder / READY).is_file():
            amateur = ready_amateur(subject, folder / READY)
        text = str(config["instruction"])
        told = subject.tokenizer(text + "\n", add_special_tokens=False)["input_ids"] if text.strip() else []
        return ContrastiveModel(
            subject.model, contrast, seal, amateur=None if amateur is None else amateur.model.eval(), instruction=told,
            bos=subject.tokenizer.bos_token_id,
        )  # fmt: skip


def ready_amateur(subject: CausalLM, path: Path) -> CausalLM:
    """The amateur that a file names, if it is the one that it was.

    Raises:
        ModelError: it is not, or it has other tokens.
    """
    facts = read_json(path)
    amateur = load_causal_lm(facts["source"], revision=facts["revision"])
    refuse_other_tokens(subject, amateur)
    if facts["digest"] != amateur.digest:
        raise ModelError(
            f"the amateur at '{facts['source']}' has digest {amateur.digest[:19]}", facts["digest"][:19],
            "put the model back that the edit was made with",
        )  # fmt: skip
    return amateur


class LOL(Method):
    """See the module."""

    card = CARD
    config_class = LOLConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Train the amateur, or take the given one; see `Method.fit`.

        Raises:
            ConfigError: no such layer, an amateur for dola, none for cd, or no instruction for gamma.
            ModelError: a guarded model, or an amateur with other tokens.
        """
        assert isinstance(config, LOLConfig)
        self.check(request, config)
        refuse_senseless(subject, config)
        trained = None
        if config.amateur is None and config.mode != "dola":
            trained = self._trained(subject, request, config, work)

        def write(folder: Path) -> None:
            if trained is not None:
                shutil.copytree(trained.edit.folder, folder / AMATEUR)
            elif config.amateur is not None:
                ready = load_causal_lm(config.amateur)
                refuse_other_tokens(subject, ready)
                facts = {"source": config.amateur, "revision": ready.revision, "digest": ready.digest}
                write_json(folder / READY, facts)

        with measure_cost(f"guard {CARD.name}") as cost:
            edit = ContrastiveEdit.finish(
                subject, write, out, method=CARD.name, config=config.model_dump(mode="json")
            )  # fmt: skip
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [*(trained.costs if trained else []), cost], trained.log if trained else [])

    def _trained(self, subject: CausalLM, request: Request, config: LOLConfig, work: Path) -> Fitted:
        """The amateur as an edit; a killed fit finds it where it was left."""
        folder = work / AMATEUR
        if (folder / "edit.json").exists():
            return Fitted(Edit.load(folder), [])
        rows = subject.encode_rows(request.forget, name="forget")
        made = train_edit(
            self, subject, supervised_schedule(rows, config), answer_loss, config, work=work / "train", out=folder
        )
        for cost in made.costs:
            cost.phase = f"amateur of {CARD.name}"
        return made


def refuse_senseless(subject: CausalLM, config: LOLConfig) -> None:
    """Settings that do not go together, before anything is trained.

    Raises:
        ConfigError: see `LOL.fit`.
        ModelError: a guarded model.
    """
    if is_guarded(subject):
        raise ModelError("contrastive decoding over another guard", "a bare model", "remove the other edit first")
    if config.mode == "dola" and config.amateur is not None:
        raise ConfigError("mode=dola with an amateur", "none: a lower layer takes its place", "leave amateur out")
    if config.mode == "cd" and config.amateur is None:
        raise ConfigError("mode=cd without an amateur", "a weaker model with the same tokenizer", "set amateur=FOLDER")
    if config.mode == "lol" and config.gamma and not config.instruction.strip():
        raise ConfigError(f"gamma={config.gamma:g} without an instruction", "a text", "set instruction=..., or gamma=0")
    exit_layers(config, len(layers_of(subject.model)))


METHOD = LOL()
