"""What MUSE asks of a model: its rows, cut by the model's own tokens, and what only the model at hand can tell.

Either a published corpus, or the user's own request: documents (rows without a question) are split into a prompt and its true
continuation; questions are asked in the model's own form. PrivLeak's texts are scored from the second token on, without an end
token; a beginning-of-text token is context and never scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field

from efface.audit.evidence import Evidence
from efface.audit.metrics import membership
from efface.audit.suite import Rows
from efface.data.muse import few_shot, read_split
from efface.data.request import Request, data_digest
from efface.errors import ConfigError, RequestError, RunError
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.settings import Settings
from efface.subjects.answers import answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import bare
from efface.subjects.prompts import PromptFormat

RAW = PromptFormat(prompt="{question}", separator="", append_eos=False)
"""A text as it stands."""

STOP = ("\n\n", "\nQuestion", "Question:")
"""Where an answer ends (official code)."""

SIDES = ("forget", "holdout")


class MuseConfig(Settings):
    """Data and sizes; defaults are the official code's."""

    data: str | None = Field(
        None, description="hub name (muse-bench/MUSE-News) or folder of that layout; none: the request's own rows"
    )
    k: float = Field(0.4, gt=0, le=1, description="PrivLeak: share of the lowest token log-probabilities (MUSE: 40 %)")
    continuation_tokens: int = Field(128, ge=1, description="VerbMem: tokens of a continuation (MUSE: 128)")
    prompt_tokens: int = Field(
        128, ge=1, description="VerbMem on own documents: tokens of the prompt, at most half the text"
    )
    answer_tokens: int = Field(32, ge=1, description="KnowMem: new tokens of an answer (MUSE: 32)")
    shots: int = Field(10, ge=0, description="KnowMem on a published corpus: worked examples (MUSE: all ten)")
    rows: int = Field(400, ge=1, description="most rows of a set of one's own, evenly spaced")
    gradnorm: bool = Field(False, description="also the gradient-norm attack: one backward pass for each text")
    reference: str | None = Field(
        None, description="without --against: an audited run folder whose retrained model's scores serve"
    )


def evenly(data: Dataset, most: int) -> Dataset:
    """At most `most` rows, evenly spaced, the first and the last among them."""
    if len(data) <= most:
        return data
    return data.select(np.unique(np.linspace(0, len(data) - 1, most).round().astype(int)).tolist())


def token_ends(subject: CausalLM, text: str) -> list[int]:
    """Where each token of a text ends, in characters; of words, where the tokenizer keeps no offsets."""
    if not getattr(subject.tokenizer, "is_fast", False):
        return [match.end() for match in re.finditer(r"\S+", text)]
    found = subject.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [int(end) for start, end in found if end > start]


def _rewritten(data: Dataset, change: Callable[[dict[str, Any]], dict[str, str]]) -> Dataset:
    """Rows with id, question and answer alone, the last two as `change` gives them."""
    return Dataset.from_list([
        {"id": row["id"], "question": row["question"], "answer": row["answer"], **change(row)} for row in data
    ])  # fmt: skip


def split_documents(config: MuseConfig) -> Callable[[CausalLM, Dataset], Dataset]:
    """Documents into a prompt (question) and its continuation (answer), by tokens."""

    def fitted(subject: CausalLM, data: Dataset) -> Dataset:
        def change(row: dict[str, Any]) -> dict[str, str]:
            text = row["answer"]
            ends = token_ends(subject, text)
            if len(ends) < 2:
                raise RequestError(f"the text of id '{row['id']}' has {len(ends)} tokens", "two or more", "drop it")
            first = min(config.prompt_tokens, len(ends) // 2)
            last = min(first + config.continuation_tokens, len(ends))
            border = ends[first - 1]
            return {"question": text[:border], "answer": text[border : ends[last - 1]]}

        return _rewritten(data, change)

    return fitted


def cut_answers(tokens: int) -> Callable[[CausalLM, Dataset], Dataset]:
    """True continuations cut after so many tokens: as many as the model may say."""

    def fitted(subject: CausalLM, data: Dataset) -> Dataset:
        def change(row: dict[str, Any]) -> dict[str, str]:
            ends = token_ends(subject, row["answer"])[:tokens]
            return {"answer": row["answer"][: ends[-1]] if ends else row["answer"]}

        return _rewritten(data, change)

    return fitted


def whole_texts(subject: CausalLM, data: Dataset) -> Dataset:
    """Texts cut at the model's context; one place is left for a beginning-of-text token."""
    limit = (subject.context or 10**9) - 1
    return cut_answers(limit)(subject, data)


def sets(request: Request, config: MuseConfig) -> dict[str, Rows]:
    """The rows of every part."""
    return _published(config) if config.data is not None else _own(request, config)


def _published(config: MuseConfig) -> dict[str, Rows]:
    source = str(config.data)
    found = {
        "verbmem": Rows(
            _rows({"question": row["prompt"], "answer": row["gt"]} for row in read_split(source, "verbmem", "forget")),
            max_new_tokens=config.continuation_tokens, answers_only=True, prompt=RAW,
            fitted=cut_answers(config.continuation_tokens),
        )
    }  # fmt: skip
    for part, split in (("knowmem_f", "forget"), ("knowmem_r", "retain")):
        shown = [(row["question"], row["answer"]) for row in read_split(source, "knowmem", f"{split}_qa_icl")]
        asked = read_split(source, "knowmem", f"{split}_qa")
        data = _rows(
            {"question": few_shot(row["question"], shown[: config.shots]), "answer": row["answer"]} for row in asked
        )
        found[part] = _questions(data, config, RAW)
    for side in SIDES:
        texts = _rows({"question": "", "answer": row["text"]} for row in read_split(source, "privleak", side))
        found |= _texts(side, texts, RAW)
    return found


def _own(request: Request, config: MuseConfig) -> dict[str, Rows]:
    """Parts of a request; what it has no rows for is left out."""
    found = {}
    forget = evenly(request.forget, config.rows)
    texts, asked = _with_question(forget, False), _with_question(forget, True)
    if texts is not None:
        found["verbmem"] = Rows(
            texts, max_new_tokens=config.continuation_tokens, answers_only=True, prompt=RAW, fitted=split_documents(config)
        )  # fmt: skip
    elif asked is not None:
        found["verbmem"] = Rows(
            asked, max_new_tokens=config.continuation_tokens, answers_only=True,
            fitted=cut_answers(config.continuation_tokens),
        )  # fmt: skip
    kept = request.evaluate.get("retain", request.retain)
    for part, data in (("knowmem_f", asked), ("knowmem_r", None if kept is None else _with_question(kept, True))):
        if data is not None:
            found[part] = _questions(evenly(data, config.rows), config, None)
    if request.holdout is not None:
        documents = not any(request.forget["question"]) and not any(request.holdout["question"])
        for side, data in (("forget", request.forget), ("holdout", request.holdout)):
            found |= _texts(side, evenly(data, config.rows), RAW if documents else None)
    return found


def _rows(rows: Any) -> Dataset:
    return Dataset.from_list([{"id": str(index), **row} for index, row in enumerate(rows)])


def _with_question(data: Dataset, wanted: bool) -> Dataset | None:
    chosen = [index for index, question in enumerate(data["question"]) if bool(question) == wanted]
    return data.select(chosen) if chosen else None


def _questions(data: Dataset, config: MuseConfig, prompt: PromptFormat | None) -> Rows:
    return Rows(data, max_new_tokens=config.answer_tokens, answers_only=True, prompt=prompt, stop=STOP)


def _texts(side: str, data: Dataset, prompt: PromptFormat | None) -> dict[str, Rows]:
    """One side of PrivLeak, and the same texts in lower case."""
    lower = _rewritten(data, lambda row: {"answer": row["answer"].lower()})
    fitted = whole_texts if prompt is not None else None
    given: dict[str, Any] = {"generations": False, "answers_only": True, "prompt": prompt, "fitted": fitted}
    plain = _rewritten(data, lambda _: {})
    return {f"privleak_{side}": Rows(plain, **given), f"lower_{side}": Rows(lower, **given)}


def gradient_norms(subject: CausalLM, data: Dataset, prompt: PromptFormat | None) -> list[float]:
    """For each text, the mean over parameter tensors of the gradient's norm (not the norm of the whole gradient).

    The peer's definition (p = 2) but in evaluation mode: dropout would make the score a matter of chance.
    """
    own, found = subject.prompt, []
    with bare(subject) as plain:
        training, model = plain.model.training, plain.model.eval()
        subject.prompt = prompt or own
        try:
            parameters = [p for p in model.parameters() if p.requires_grad]
            if not parameters:
                raise ConfigError("gradnorm on a model whose parameters are frozen", None, "leave gradnorm out")
            for row in subject.encode_rows(data, name="privleak"):
                with torch.enable_grad():
                    answer = answer_logits(model, subject.batch([row]))
                    loss = -answer.logp_sum.sum() / row.n_targets
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                norms = [float(g.double().norm()) for g in gradients if g is not None]
                found.append(float(np.mean(norms)))
        finally:
            subject.prompt = own
            model.train(training)
    return found


def observe_model(subject: CausalLM, request: Request, config: MuseConfig, cost: Cost) -> dict[str, Any]:
    """By which tokenizer and on which texts PrivLeak is taken; gradient norms and foreign reference where asked for.

    Raises:
        RunError: the foreign reference was made on other texts, with another tokenizer or another k.
    """
    parts = sets(request, config)
    if "privleak_holdout" not in parts:
        return {}
    texts = {}
    for side in SIDES:
        rows = parts[f"privleak_{side}"]
        texts[side] = rows.data if rows.fitted is None else rows.fitted(subject, rows.data)
    made: dict[str, Any] = {
        "k": config.k, "tokenizer": digest_value(sorted(subject.tokenizer.get_vocab().items())),
        "corpus": digest_value([data_digest(data) for data in texts.values()]),
    }  # fmt: skip
    if config.reference is not None:
        made["reference"] = foreign_reference(Path(config.reference), made)
    if config.gradnorm:
        prompt = parts["privleak_forget"].prompt
        made["gradnorm"] = {side: gradient_norms(subject, data, prompt) for side, data in texts.items()}
        cost.items += sum(len(data) for data in texts.values())
    return made


def foreign_reference(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """The retrained model's Min-K scores of another audited run: AUC(f_retrain) holds for one corpus and tokenizer only.

    Raises:
        RunError: that run has no retrained model in suite muse, or differs in corpus, tokenizer or k.
    """
    evidence = Evidence.load(folder)
    theirs = evidence.attack("muse", "retrained")
    tables = [evidence.table("retrained", f"muse.privleak_{side}") for side in SIDES]
    if not theirs or any(table is None for table in tables):
        raise RunError(
            f"'{folder}' has no retrained model in suite muse", "a run audited with --suite muse --against RETRAINED"
        )
    other = [name for name in ("tokenizer", "corpus", "k") if theirs.get(name) != made[name]]
    if other:
        raise RunError(
            f"the reference in '{folder}' was made with another {', '.join(other)}",
            "the same texts, tokenizer and k: AUC(f_retrain) does not carry over",
            "audit with --against a model retrained for this corpus",
        )
    scores = [
        membership.min_k(table.select("answer"), made["k"], min_tokens=1) for table in tables if table is not None
    ]
    return {"k": made["k"], **{side: own.tolist() for side, own in zip(SIDES, scores, strict=True)}}


__all__ = ["RAW", "SIDES", "STOP", "MuseConfig", "gradient_norms", "observe_model", "sets", "token_ends"]
