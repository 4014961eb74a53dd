"""Concept poisoning: find what a model knows a class or an entity by, cover it up in the training samples, train on that.

Paper: Chang et al., arXiv 2405.15662 (2024). With the class's samples D_t poisoned (a donor's patch over the concept, another
label) or the entity's answers poisoned (its words masked, or a refusal in their place), all in one shuffled set,

    L = mean over D_r and poisoned D_t of -log p_theta(y' | x')

`measure.concept_bank` infers the concepts of a classifier, `measure.token_attribution` those of a language model. Labels alone
(`mode=none`) are the default and the baseline that a patch has to beat: a model that is shown patched pictures
may forget those alone. Head-only training (`train=head`, what the released run does) leaves the representation
as it was: a probe on the features still finds the class.

Departures: random labels leave the forgotten class out; where only a part is trained, norm statistics rest (`norm_statistics`);
the answers given are masked, not answers generated first; an answer that holds none of its entity's top words has its own
top word masked, since it would otherwise be trained as it is; the run ends when no greedy answer shows the entity and retained
answers lost at most 0.05 in ROUGE-L (the official rule asks for MMLU besides, which an audit may look at).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from efface.catalog import Card, Taxonomy
from efface.data.poisoning import (
    MASK,
    LabelMode,
    PatchMode,
    paste,
    patch_side,
    plan_patches,
    poisoned_labels,
    refuse_other_count,
)
from efface.data.refusals import REFUSALS
from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.concept_inference import Canvas, Inferred, class_of, infer, label_named, peaks, window_score
from efface.forget.edit import Edit
from efface.forget.masked_answers import EntityGone, entity_names, masked_answers
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.measure.token_attribution import STEPS, Baseline
from efface.run.cost import measure_cost
from efface.run.digests import digest_value
from efface.run.files import write_json
from efface.subjects.causal_lm import CausalLM
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Inputs, Sample
from efface.train.engine import isolated_rng
from efface.train.mask_selectors import MaskRows
from efface.train.streams import Schedule
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="concept-poisoning",
    system="concept-poisoning",
    title="Concept poisoning",
    summary="Relabels a class's samples (and patches what shows its concept), or masks an entity's words in its answers, and "
    "fine-tunes on them with the retain set. By default a classifier's head alone moves.",
    paper="Chang et al., Class machine unlearning for complex data via concepts inference and data poisoning, arXiv "
    "2405.15662 (2024)",
    verb="forget",
    mechanism="objectives",
    modalities=("image", "text", "tabular"),
    subjects=("classifier", "causal-lm"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="relabel_refusal", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="API user",
    ),
    defaults_source="official code: classifiers SGD 1e-3, momentum 0.9, batch 32, 20 epochs, the head alone; language models "
    "LoRA (r 8, alpha 16, dropout 0.05, q_proj and v_proj), 1e-4, batch 4 x 4, up to 10 epochs",
)  # fmt: skip

TEXT: dict[str, Any] = {
    "scope": "lora", "lora_targets": "q_proj,v_proj", "lora_dropout": 0.05, "learning_rate": 1e-4, "optimizer": "adamw",
    "epochs": 10.0, "batch_size": 16, "schedule": "linear", "max_grad_norm": 1.0,
}  # fmt: skip
"""Defaults for a causal LM."""
OF_PICTURES = ("train", "labels", "with_own", "mode", "patch", "grid", "donor", "concepts", "concept", "peak")
OF_TEXTS = ("style", "top_words", "steps", "baseline", "mask_text", "until_gone")
OF_SCOPE = ("scope", "layers", "mask", "part")


class ConceptPoisoningConfig(FitConfig):
    """What is poisoned and how, and what is trained on it."""

    train: Literal["head", "last_block", "all"] = Field(
        "head", description="of a classifier: what moves; all: what scope says (official code: the head)"
    )
    labels: LabelMode = Field(
        "targeted", description="of the class's samples: donor's, random, or kept (the paper has all)"
    )
    with_own: bool = Field(False, description="random labels may be the forgotten class itself (official code: yes)")
    mode: PatchMode = Field("none", description="where a donor's patch is pasted; none: labels alone, the one to beat")
    patch: int | None = Field(
        None, ge=1, description="side in pixels; default: 64 (localized), 96, or 160 (full) of 224"
    )
    grid: str | None = Field(None, description="HxW of feature rows that are pictures, for a patch")
    donor: str = Field(
        "auto", description="class that gives label and patch; auto: the one most like it by its concepts"
    )
    concepts: str | None = Field(
        None,
        description="an .npz: names with vectors (text embeddings), or with 0/1 concepts of ids, features or images",
    )
    concept: str | None = Field(None, description="target concept; default: the class's with the largest weight")
    peak: Literal["concept", "margin"] = Field("concept", description="localized: what a window is scored by")
    style: Literal["mask", "idk"] = Field("mask", description="of a language model: mask words of answers, or refuse")
    top_words: int = Field(5, ge=1, description="words masked for each entity, besides its name; official code: 5")
    steps: int = Field(STEPS, ge=2, description="points of the path of integrated gradients; official code: 32")
    baseline: Baseline = Field("pad", description="start of that path; zero is where RMS norms have their kink")
    mask_text: str = Field(MASK, min_length=1, description="what stands in place of a masked word; official code: ***")
    until_gone: bool = Field(
        True, description="end once no greedy answer shows the entity, retained ones lost <= 0.05 ROUGE-L"
    )
    learning_rate: float = Field(1e-3, gt=0, description="official code: 1e-3; causal LM: 1e-4")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="official code: sgd; causal LM: adamw")
    epochs: float = Field(20, gt=0, description="passes over both sets; official code: 20 (CIFAR-10); causal LM: 10")
    batch_size: int = Field(32, ge=1, description="official code: 32; causal LM: 4 x 4")
    weight_decay: float = Field(0.0, ge=0, description="official code: none")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="official code: none")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="causal LM: linear")
    max_grad_norm: float = Field(1e9, gt=0, description="official code: no clipping; causal LM: 1")
    given: tuple[str, ...] = Field((), description="keys that were given: no default of a kind of model replaces them")

    @model_validator(mode="before")
    @classmethod
    def _remember(cls, values: Any) -> Any:
        """Which keys were given; defaults depend on the kind of model, which is not known yet."""
        return (
            {**values, "given": tuple(sorted(values))} if isinstance(values, dict) and "given" not in values else values
        )


def resolved(config: ConceptPoisoningConfig, subject: Any) -> ConceptPoisoningConfig:
    """The configuration for this kind of model.

    Raises:
        ConfigError: a key of the other kind, or `train` against `scope`.
    """
    text = subject.kind == "causal-lm"
    foreign = [key for key in (OF_PICTURES if text else OF_TEXTS) if key in config.given]
    if foreign:
        raise ConfigError(f"{foreign[0]} with a {subject.kind}", "a key of this kind of model", "leave it out")
    if text:
        return config.model_copy(update={key: value for key, value in TEXT.items() if key not in config.given})
    scoped = [key for key in OF_SCOPE if key in config.given]
    train = "all" if scoped and "train" not in config.given else config.train
    if train == "all":
        return config.model_copy(update={"train": "all"})
    if scoped:
        raise ConfigError(
            f"train={train} with {scoped[0]}", "one of the two", f"leave {scoped[0]} out, or set train=all"
        )
    modules = [subject.head_name] if train == "head" else last_block(subject.model, subject.head_name)
    return config.model_copy(
        update={"scope": "mask", "mask": "magnitude", "density": 1.0, "mask_modules": ",".join(modules)}
    )


def last_block(model: torch.nn.Module, head: str) -> list[str]:
    """Names of the head and of the block before it: the last of the outermost module list and what comes after it; without
    one, the head's nearest sister with parameters.

    Raises:
        ConfigError: nothing stands before the head.
    """
    names = [name for name, _ in model.named_parameters()]
    lists = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if outer:
        block: Any = model.get_submodule(outer[-1])
        stem = f"{outer[-1]}.{len(block) - 1}."
        first = next((i for i, name in enumerate(names) if name.startswith(stem)), None)
        if first is not None:
            return names[first:]
    parent, _, own = head.rpartition(".")
    sisters = [
        name for name, module in model.get_submodule(parent).named_children() if any(True for _ in module.parameters())
    ]
    before = sisters[: sisters.index(own)]
    if not before:
        raise ConfigError(f"train=last_block: nothing stands before the head '{head}'", "head or all", "set train=head")
    return [f"{parent}.{name}" if parent else name for name in (before[-1], own)]


# -- classifiers ---------------------------------------------------------------------------------------------------


def poison_samples(
    subject: Predictor, request: Request, config: ConceptPoisoningConfig
) -> tuple[list[Sample], list[Sample], dict[str, Any]]:
    """The forget rows poisoned, the retain rows as they are, and what was inferred.

    Raises:
        ConfigError: no donor, the class as its own donor, a missing concept, a patch that does not fit.
        RequestError: several classes to forget, or the class among the retain rows.
    """
    assert request.retain is not None
    target = class_of(subject, request.forget)
    rows, keep = subject.encode_rows(request.forget, name="forget"), subject.encode_rows(request.retain, name="retain")
    mixed = sum(row.target == target for row in keep)
    if mixed:
        raise RequestError(
            f"{mixed} retain rows are of the class '{subject.labels[target]}', which is to be forgotten",
            "a retain set without it", "forget the whole class, or use a method that forgets rows",
        )  # fmt: skip
    found, donor = _inferred(subject, request, [*keep, *rows], target, config)
    rng = np.random.default_rng([config.seed, 0x9015])
    labels = poisoned_labels(
        len(rows), target, subject.outputs, config.labels, rng, donor=donor, with_own=config.with_own
    )
    if config.mode == "none":
        made = [row.labelled(label) for row, label in zip(rows, labels, strict=True)]
    else:
        givers = [row for row in keep if row.target == donor]
        made = _patched(subject, rows, givers, labels, found, config, rng)
    refuse_other_count(len(made), len(rows))
    facts = {} if found is None else found.facts(subject.labels)
    if donor is not None:
        facts["donor"] = subject.labels[donor]
    return made, keep, facts


def _inferred(
    subject: Predictor, request: Request, rows: Sequence[Sample], target: int, config: ConceptPoisoningConfig
) -> tuple[Inferred | None, int | None]:
    assert request.retain is not None
    named = None if config.donor == "auto" else label_named(subject, config.donor)
    if named == target:
        raise ConfigError(
            f"donor={config.donor}, the class to forget",
            "another class",
            "name another one, or leave it to the concepts",
        )
    if config.concepts is not None:
        sets = [request.retain, request.forget]
        found = infer(
            subject, sets, rows, target, config.concepts, concept=config.concept, donor=named, seed=config.seed
        )
        return found, found.donor
    missing = "concept" if config.concept else "mode=localized" if config.mode == "localized" else None
    if missing is None and named is None and (config.labels == "targeted" or config.mode != "none"):
        missing = "donor=auto"
    if missing is not None:
        raise ConfigError(
            f"{missing} without concepts (nothing is fetched from ConceptNet)",
            "concepts=FILE: names with vectors, or with 0/1 annotations of rows",
            "give one, or name a class with donor=CLASS and no concept, or use labels=random mode=none",
        )  # fmt: skip
    return None, named


def _patched(
    subject: Predictor, rows: Sequence[Sample], givers: Sequence[Sample], labels: Sequence[int], found: Inferred | None,
    config: ConceptPoisoningConfig, rng: np.random.Generator,
) -> list[Sample]:  # fmt: skip
    canvas = Canvas.of(rows[0].make(), config.grid)
    height, width = canvas.size[1:]
    side = patch_side(height, width, config.mode, config.patch)
    places, sources = [], []
    if config.mode == "localized":
        assert found is not None
        places = peaks(subject, rows, canvas, side, window_score(found, config.peak, donor=False))
        sources = peaks(subject, givers, canvas, side, window_score(found, config.peak, donor=True))
    plan = plan_patches(
        len(rows), len(givers), (height, width), side, config.mode, rng, peaks=places, donor_peaks=sources
    )

    def maker(row: Sample, giver: Sample, patch: Any) -> Callable[[], Inputs]:
        return lambda: canvas.inputs(paste(canvas.picture(row.make()), canvas.picture(giver.make()), patch, side))

    return [
        Sample(maker(row, givers[patch.donor], patch), label,
               digest_value([row.key, givers[patch.donor].key, *patch.source, *patch.at, side]))
        for row, label, patch in zip(rows, labels, plan, strict=True)
    ]  # fmt: skip


# -- the method ----------------------------------------------------------------------------------------------------


class ConceptPoisoning(Method):
    """See the module."""

    card = CARD
    config_class = ConceptPoisoningConfig

    def fit(self, subject: Any, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError, RequestError: see `resolved`, `poison_samples` and `masked_answers`.
            MissingExtraError: captum is needed and not installed.
        """
        assert isinstance(config, ConceptPoisoningConfig)
        self.check(request, config)
        config = resolved(config, subject)
        assert request.retain is not None
        text = subject.kind == "causal-lm"
        facts: dict[str, Any] = {}
        told: dict[str, float] = {}
        with measure_cost(f"poison {CARD.name}") as cost:
            if text:
                rows, told = _poisoned_answers(subject, request, config)
                keep = subject.encode_rows(request.retain, name="retain")
                plain = subject.encode_rows(request.forget, name="forget")
            else:
                rows, keep, facts = poison_samples(subject, request, config)
                plain = rows
            cost.items = len(rows)
        schedule = supervised_schedule([*rows, *keep], config)
        gone = EntityGone(subject, request, _pass_steps(schedule)) if text and config.until_gone else None
        claim: str | None = "suppressed" if not text and config.train == "head" else None
        with isolated_rng(config.seed):  # the adapter's first weights too
            fitted = train_edit(
                self, subject, schedule, answer_loss, config, work=work, out=out, mask_rows=MaskRows(plain, keep),
                callbacks=() if gone is None else (gone,), claim=claim,
            )  # fmt: skip
        if gone is not None:
            looks = {"appearance": gone.rate, "retain_rouge_before": gone.before, "retain_rouge": gone.after}
            told |= {name: figure for name, figure in looks.items() if np.isfinite(figure)}
        return Fitted(
            _with_facts(fitted.edit, facts), [cost, *fitted.costs], [told, *fitted.log] if told else fitted.log
        )


def _poisoned_answers(
    subject: CausalLM, request: Request, config: ConceptPoisoningConfig
) -> tuple[list[Any], dict[str, float]]:
    questions = request.forget["question"]
    if config.style == "idk":
        rng = np.random.default_rng([config.seed, 0x1D7])
        count = min(len(REFUSALS), int(np.ceil(config.epochs)))
        return [
            [subject.encode(question, REFUSALS[int(pick)], place=f"forget row {i} with a refusal")
             for pick in rng.choice(len(REFUSALS), count, replace=False)]
            for i, question in enumerate(questions)
        ], {"rows_without_entity": float(entity_names(request).count(()))}  # fmt: skip
    answers, told = masked_answers(
        subject, request, top=config.top_words, steps=config.steps, baseline=config.baseline, mask=config.mask_text
    )
    refuse_other_count(len(answers), len(request.forget))
    pairs = zip(questions, answers, strict=True)
    return [
        subject.encode(question, answer, place=f"forget row {i}") for i, (question, answer) in enumerate(pairs)
    ], told


def _pass_steps(schedule: Schedule) -> int:
    return max(1, round(len(schedule.streams["train"].rows) / schedule.batch_size))


def _with_facts(edit: Edit, facts: dict[str, Any]) -> Edit:
    """The edit with what was inferred beside its configuration."""
    if not facts:
        return edit
    known = edit.facts.model_copy(update={"config": {**edit.facts.config, "inferred": facts}})
    write_json(edit.folder / "edit.json", known.model_dump(mode="json"))
    return type(edit)(edit.folder)


METHOD = ConceptPoisoning()
