"""A content filter round a model: it reads the prompt with all its documents, and what the model made of it, and may refuse.

Shumailov et al., UnUnlearning, arXiv 2407.00106 (2024), conclude that a model which can be told the forgotten thing needs a
filter of content besides unlearning; they give none, so this form of it is efface's own. Stages: prompt (every message and
document), tool output, draft answer. Rules: phrases and premise sets (hashed, see `content_policy`); similarity to forbidden
texts and a prompt classifier, both with a conformal threshold on permitted text. Nothing is removed from the model: this is
suppression, and similarity and gate store words of what they forbid.

In a score table a row whose prompt, or whose answer behind its prompt, would be blocked has the distribution that forces the
refusal. A pass-by-pass decoding loop of one's own meets the prompt stage only; `generate` checks the draft too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.context_ladder import answers_of
from efface.data.request import Request
from efface.errors import ConfigError, InputError, RequestError
from efface.forget.guards.abstention import Abstention, since_end
from efface.forget.guards.content_check import RULES, ContentFilter, Verdict, nearness
from efface.forget.guards.content_policy import Policy, PolicyItem, items_of, read_item
from efface.forget.guards.guard_edit import GuardEdit
from efface.forget.guards.prompt_gate import PromptGate, WordGate
from efface.forget.method import FitConfig, Fitted, Method
from efface.numerics.conformal import upper_quantile
from efface.run.cost import measure_cost
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import Asked, GuardedModel, Pass, prompt_texts
from efface.subjects.text_index import TextIndex, sentence_embedding

CARD = Card(
    name="content-filter",
    system="ununlearning",
    title="Content filter",
    summary="Reads prompts, documents and drafts, and refuses what the policy forbids or what follows from it; the weights keep "
    "their knowledge.",
    paper="Shumailov et al., UnUnlearning, arXiv 2407.00106 (2024)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget",),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="output_filter", survey_class="filter", level="output",
        threat_model="API user who may put anything into the prompt",
    ),
    defaults_source="efface's own (the paper gives no filter); false-block budget 1 % from the specification",
)  # fmt: skip


class FilteredModel(GuardedModel):
    """A model behind a filter.

    Args:
        base: a causal LM.
        tokenizer: its own.
        content: the filter.
        refusal: what a blocked request gets.
    """

    def __init__(self, base: Any, tokenizer: Any, content: ContentFilter, refusal: Abstention, seal: str) -> None:
        super().__init__(base, seal)
        self.tokenizer, self.gate, self.refusal = tokenizer, content, refusal

    def begin(self, asked: Asked) -> None:
        """Check each prompt; where answers are given to be scored, check them too."""
        asked.memory["texts"] = texts = prompt_texts(self.tokenizer, asked)
        drafts: list[str | None] = [None] * len(texts)
        if not asked.generating:
            rest = asked.mask.bool() & ~asked.prompt
            drafts = [self._text(row[keep]) or None for row, keep in zip(asked.ids, rest, strict=True)]
        asked.memory["verdicts"] = verdicts = [self._verdict(*pair) for pair in zip(texts, drafts, strict=True)]
        asked.memory["stopped"] = stopped = [verdict.action != "allow" for verdict in verdicts]
        asked.memory["since"] = since_end(asked, torch.tensor(stopped, device=asked.ids.device))

    def _verdict(self, text: str, draft: str | None) -> Verdict:
        return self.gate.check([{"role": "user", "content": text}], draft)

    def _text(self, ids: Tensor) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()

    def correct(self, now: Pass, output: Any) -> Any:
        """The refusal in blocked rows, the base's logits in the others."""
        return self.refusal.correct(now, output, now.asked.memory["since"])

    def _generate(self, asked: Asked, ids: Tensor, more: dict[str, Any]) -> Any:
        if more.get("streamer") is not None:
            raise ConfigError(
                "a streamer behind a content filter", "whole answers", "a draft is checked before it is shown"
            )
        made = super()._generate(asked, ids, more)
        whole = made if isinstance(made, Tensor) else made.sequences
        width, rows = ids.shape[1], []
        times = len(whole) // len(ids)
        stop = int(self.refusal.tokens[-1])
        for index, row in enumerate(whole[:, width:]):
            own = index // times
            verdict = asked.memory["verdicts"][own]
            if verdict.action == "allow":
                verdict = self._verdict(asked.memory["texts"][own], self._text(row) or None)
            if verdict.action == "redact":
                cut = self.tokenizer(verdict.text, add_special_tokens=False)["input_ids"]
                row = torch.tensor([*cut, stop], device=row.device)
            rows.append(self.refusal.tokens.to(row.device) if verdict.action == "block" else row)
        longest = max(len(row) for row in rows)
        pad = more.get("pad_token_id")
        fill = stop if pad is None else int(pad)
        answers = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=fill) for row in rows])
        whole = torch.cat([whole[:, :width], answers], dim=1)
        if isinstance(made, Tensor):
            return whole
        made.sequences = whole
        return made


class ContentFilterConfig(FitConfig):
    """The policy and what acts on it; nothing is trained but the gate of the rule `gate`."""

    rules: str = Field("phrases,premises", description="comma-separated, among phrases, premises, similarity, gate")
    action: Literal["block", "redact"] = Field("block", description="what a forbidden phrase in a draft leads to")
    min_words: int = Field(
        4, ge=1, description="words from which a forget row's answer is forbidden wherever it stands"
    )
    window: int = Field(32, ge=0, description="words within which premises must stand; 0: anywhere in the conversation")
    policy: str | None = Field(None, description="JSONL file with id, phrases, premises: further forbidden items")
    rate: float = Field(
        0.01, gt=0, lt=1, description="similarity, gate: false-block budget on permitted text (spec: 1 %)"
    )
    encoder: str | None = Field(None, description="similarity: a sentence encoder; default: TF-IDF over words")
    decode: bool = Field(True, description="look into base64")
    refusal: str = Field("I don't know.", description="what a blocked request gets")

    @field_validator("rules")
    @classmethod
    def _known(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if unknown := [name for name in names if name not in RULES]:
            raise ValueError(f"no rule '{unknown[0]}'; choose from {', '.join(RULES)}")
        return ",".join(names)


class FilterEdit(GuardEdit):
    """`policy.json` and, where such rules act, `similarity.json` and `gate/`."""

    kind = "content-filter"

    @classmethod
    def build(cls, subject: CausalLM, folder: Path, config: dict[str, Any], seal: str) -> FilteredModel:
        """See `GuardEdit.build`."""
        known: dict[str, Any] = {}
        if (folder / "similarity.json").exists():
            stored = read_json(folder / "similarity.json")
            embed = sentence_embedding(config["encoder"]) if config["encoder"] else None
            known = {"index": TextIndex(stored["texts"], embed), "threshold": float(stored["threshold"])}
        if (folder / "gate").exists():
            known["gate"] = PromptGate.read(folder / "gate")
        content = ContentFilter(
            Policy.load(read_json(folder / "policy.json")), rules=config["rules"].split(","), action=config["action"],
            decode=config["decode"], **known,
        )  # fmt: skip
        return FilteredModel(subject.model, subject.tokenizer, content, Abstention.of(subject, config["refusal"]), seal)


class ContentFilterMethod(Method):
    """See the module."""

    card = CARD
    config_class = ContentFilterConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Make the policy of the forget rows and calibrate on the retain rows; see `Method.fit`.

        Raises:
            RequestError: a rule that must be calibrated, and no retain set.
            InputError: too few retain rows for the rate, or a policy file that cannot be read.
        """
        assert isinstance(config, ContentFilterConfig)
        self.check(request, config)
        rules = config.rules.split(",")
        if {"similarity", "gate"} & set(rules) and request.retain is None:
            raise RequestError("a rule with a threshold and no retain set", "permitted rows", "give them with --retain")
        with measure_cost(f"fit {CARD.name}") as cost:
            items = items_of(list(request.forget), min_words=config.min_words) + _listed(config.policy)
            salt = digest_value({"seed": config.seed, "base": subject.digest}).removeprefix("sha256:")[:32]
            policy = Policy.of(items, salt, window=config.window)
            extra = self._calibrated(request, config, rules)
            cost.items = len(items)

            def write(folder: Path) -> None:
                write_json(folder / "policy.json", policy.dump())
                if "similarity" in extra:
                    write_json(folder / "similarity.json", extra["similarity"])
                if "gate" in extra:
                    extra["gate"].write(folder / "gate")

            stored = {**config.model_dump(mode="json"), "stores_forbidden_words": sorted(extra)}
            edit = FilterEdit.finish(subject, write, out, method=CARD.name, config=stored)
        return Fitted(edit, [cost])

    def _calibrated(self, request: Request, config: ContentFilterConfig, rules: Sequence[str]) -> dict[str, Any]:
        """Thresholds from permitted text: for the gate from retain rows that it was not fitted on."""
        made: dict[str, Any] = {}
        keep = [] if request.retain is None else list(request.retain)
        if "similarity" in rules:
            texts = [f"{row['question']} {answer}".strip() for row in request.forget for answer in answers_of(row)]
            index = TextIndex(texts, sentence_embedding(config.encoder) if config.encoder else None)
            scores = [nearness(index, f"{row['question']} {row['answer']}".strip()) for row in keep]
            made["similarity"] = {"texts": texts, "threshold": upper_quantile(scores, config.rate)}
        if "gate" in rules:
            questions = [row["question"] for row in keep]
            gate = WordGate.fit(request.forget["question"], questions[::2], seed=config.seed)
            made["gate"] = gate.calibrated(questions[1::2], config.rate)
        return made


def _listed(path: str | None) -> list[PolicyItem]:
    """The items of a policy file."""
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"policy '{path}' cannot be read", "a JSONL file in UTF-8", "check the path") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON", "one object a line", "mend the line") from error
            found.append(read_item(row if isinstance(row, dict) else {}, f"{path}, line {number}"))
    return found


METHOD = ContentFilterMethod()

__all__ = ["ContentFilter", "ContentFilterConfig", "FilteredModel", "Verdict"]
