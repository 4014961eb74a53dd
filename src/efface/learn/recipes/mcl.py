"""MCL: contrastive learning in stages, each among items that the stages before could not tell apart.

Paper: Learning the unlearned: mitigating feature suppression in contrastive learning, arXiv 2402.11816 (ECCV 2024). After
each stage s all items are clustered by k-means on the unit rows of its encoder, unaugmented, q_s(i) in 0..K-1; the next stage
draws every batch from one value of

    u_i = (q_0(i), ..., q_s(i)), coded in mixed radix, u <- u K + q_s,

so that all negatives share every earlier cluster and what was learnt no longer separates them. The loss stays the base
recipe's. The result concatenates the unit rows of all stages (subjects/ensemble.py), at as many times the cost of one.

Departures from the official code: its pseudo-labels after stage 1 carry the present clustering only (its loop loads one
file each time); ours carry all, as the paper says. Groups that cannot fill a batch are dropped there without a word; here the
share of items in usable groups is reported and refused below one half. No process group is needed in a single process.
Within a cluster items of one class are negatives of each other: false negatives increase. Losses of different stages must
not be compared: in-group negatives are harder. Compare with an ensemble of as many plain encoders, or the gain is width.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, find
from efface.data.labelled import read_rows
from efface.errors import ConfigError, RequestError
from efface.learn.contrastive import check_kind, fit, items_digest, join, start_model
from efface.learn.folder import learn_into
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.pseudo_labels import cluster, coverage, merged, pseudo_labels, sizes_of
from efface.learn.run import read_sets
from efface.run.cost import Cost, measure_cost
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json
from efface.subjects.encoder import Encoder, load_encoder
from efface.subjects.ensemble import EnsembleEncoder
from efface.train.engine import first_process, wait_for_all, world_size
from efface.train.gather import gather_plain
from efface.train.rows import GroupSchedule

CARD = Card(
    name="mcl",
    system="mcl",
    title="Multistage contrastive learning",
    summary="Trains several encoders in turn, each among items that the earlier ones put together, so that features which the "
    "easy ones suppress are learnt too; their concatenation costs as many passes as there are stages.",
    paper="Multistage contrastive learning, arXiv 2402.11816 (ECCV 2024)",
    verb="learn",
    mechanism="recipes",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="three stages, K = 10: MCL, CLIP on CC12M (unimodal: K 5 to 20); the base recipe's own for the rest",
)

COVERAGE = 0.5
"""Least share of the items in usable groups."""
CLUSTERS = "clusters.json"
OWN = ("base", "base_settings", "stages", "clusters", "begin", "stage_batch_size", "small_groups")


class MCLConfig(ContrastiveConfig):
    """Stages and clusters; every other key is the base recipe's, whose defaults count where it is not set."""

    base: str = Field("nt-xent", description="recipe of each stage; MCL's loss is the base's")
    base_settings: dict[str, Any] = Field({}, description="the base recipe's own keys, such as temperature")
    stages: int = Field(3, ge=1, le=16, description="in total; MCL: 3")
    clusters: int = Field(10, ge=2, description="K, clusters of each stage; MCL: 10 (unimodal 5 to 20)")
    begin: Literal["auto", "fresh", "previous"] = Field(
        "auto", description="weights of a later stage; auto: the previous stage's for a given model, fresh from scratch"
    )
    stage_batch_size: int | None = Field(
        None,
        ge=2,
        description="rows of a batch after the first stage; default: batch_size. Smaller ones use smaller groups",
    )
    small_groups: Literal["skip", "merge"] = Field(
        "skip", description="groups that fill no batch: left out of the stage, or put to the nearest group that does"
    )


def base_recipe(config: MCLConfig) -> tuple[Recipe, ContrastiveConfig]:
    """The recipe of the stages, and its configuration.

    Raises:
        ConfigError: no such recipe, or one that has no encoder of one tower.
    """
    module = find(config.base, "learn").module
    recipe: Recipe | None = getattr(module, "RECIPE", None)
    if recipe is None or recipe.takes == "pairs":
        raise ConfigError(
            f"base={config.base}, which " + ("is no contrastive recipe" if recipe is None else "trains a dual encoder"),
            "a contrastive recipe of one tower", "nt-xent, moco, sup-con, ...",
        )  # fmt: skip
    known = recipe.config.model_fields
    given = {name: value for name, value in config.model_dump(exclude_unset=True).items() if name not in OWN}
    for name in given:
        if name not in known:
            raise ConfigError(f"'{name}' for the base '{config.base}'", "a key that it has")
    return recipe, recipe.config.parse({**given, **config.base_settings}, owner=config.base)


class Stages:
    """One run of MCL: the encoders and clusterings of the stages so far.

    Args:
        config: MCL's.
        data: the items.
        model: what stage 0 is, as it is; None trains it from scratch.
        work: the stages' folders until the run is done; a finished stage is not trained again.
        label: in the progress bar.
    """

    def __init__(self, config: MCLConfig, data: Dataset, model: Encoder | None, work: Path, label: str) -> None:
        self.config, self.data, self.model, self.work, self.label = config, data, model, work, label
        self.recipe, self.settings = base_recipe(config)
        self.encoders: list[Encoder] = []
        self.clusterings: list[Tensor] = []
        self.facts: list[dict[str, Any]] = []
        self.digest = items_digest(data)

    def run(self) -> EnsembleEncoder:
        """All stages."""
        for stage in range(self.config.stages):
            self.encoders.append(self._stage(stage))
            if stage + 1 < self.config.stages:
                self._cluster()
        return EnsembleEncoder(self.encoders)

    def _items(self) -> list[Any]:
        modality = self.encoders[0].modality
        table = self.data.with_format("numpy")[:] if modality == "features" else self.data
        return list(table[modality])

    def _cluster(self) -> None:
        rows = self.encoders[-1].embed(self._items(), 256, label="cluster")
        found = cluster(rows, self.config.clusters, self.config.seed)
        # one process decides: another machine's rounding must not move an item to another group there
        self.clusterings.append(gather_plain(found.to(self.encoders[-1].device))[: len(found)].cpu())
        self.last_rows = rows

    def _stage(self, stage: int) -> Encoder:
        if stage == 0 and self.model is not None:
            self.facts.append({"stage": 0, "given": self.model.source})
            return self.model
        config = self.settings.model_copy(update={"seed": self.settings.seed + 1000 * stage})
        schedule, facts = None, {"stage": stage}
        if stage:
            schedule, more = self._schedule(config)
            facts |= more
        folder = self.work / f"stage-{stage}"
        key = {"stage": stage, "config": config.model_dump(mode="json"), "mcl": self.config.model_dump(mode="json"),
               "data": self.digest, "groups": digest_value(schedule.plan) if schedule else None}  # fmt: skip

        def fit_into(work: Path) -> tuple[Encoder, dict[str, Any], Cost]:
            subject = self._start(stage, config)
            done = fit(self.recipe, subject, self.data, config, work=work, schedule=schedule,
                       label=f"{self.label} stage {stage}")  # fmt: skip
            return subject, {"final_loss": done.values[-1]["loss"], **done.facts}, done.cost

        def read() -> Encoder:
            return load_encoder(folder)

        encoder = learn_into(folder, key, load=read, fit=fit_into)
        written = read_json(folder / "learn.json")
        self.facts.append(facts | {name: written[name] for name in ("final_loss", "steps", "losses", "curves", "warnings")
                                   if name in written})  # fmt: skip
        return encoder

    def _start(self, stage: int, config: ContrastiveConfig) -> Encoder:
        before = self.config.begin == "previous" or (self.config.begin == "auto" and self.model is not None)
        if not stage or not before:
            return cast(Encoder, start_model(self.recipe, config, self.data))
        folder = self.work / f"start-{stage}"  # a copy: the stage before stays as it is
        if first_process():
            shutil.rmtree(folder, ignore_errors=True)
            self.encoders[-1].save(folder)
        wait_for_all()
        return load_encoder(folder)

    def _schedule(self, config: ContrastiveConfig) -> tuple[GroupSchedule, dict[str, Any]]:
        """Batches of one group, with what is to be reported of them."""
        u = pseudo_labels(self.clusterings, self.config.clusters)
        size = min(self.config.stage_batch_size or config.batch_size, len(u))
        sizes = torch.bincount(self.clusterings[-1], minlength=self.config.clusters)
        groups = merged(u, self.last_rows, size) if self.config.small_groups == "merge" else u
        share = coverage(groups, size)
        if share < COVERAGE:
            raise ConfigError(
                f"{share:.0%} of the items lie in groups that fill a batch of {size} ({len(sizes_of(u)[0])} groups after "
                f"{len(self.clusterings)} stages)", f"{COVERAGE:.0%} or more",
                "lower stage_batch_size or clusters, or set small_groups=merge",
            )  # fmt: skip
        schedule = GroupSchedule(
            groups.tolist(), epochs=config.epochs, batch_size=size, seed=config.seed, world=world_size()
        )
        return schedule, {
            "cluster_sizes": sizes.tolist(), "largest_cluster": float(sizes.max()) / len(u), "groups": len(sizes_of(u)[0]),
            "usable_groups": int((sizes_of(groups)[2] >= size).sum()), "coverage": share,
            "stage_batch_size": size,
        }  # fmt: skip


def learn(
    data: Sequence[Dataset], out: Path, config: MCLConfig, *, model: Encoder | None = None, prompt: Any = None,
    tokenizer_data: Sequence[Dataset] = (), label: str = "mcl",
) -> EnsembleEncoder:  # fmt: skip
    """Train all stages and save their ensemble; a killed run goes on in the stage where it was.

    Args:
        data: sets with the columns that the base recipe takes, joined.
        out: the folder of the ensemble; `learn.json` in it tells of every stage, `clusters.json` holds the clusters by id.
        model: stage 0 as it is; None trains one from scratch.

    Raises:
        ConfigError: a base that cannot serve, or groups too small for the batches.
        RunError, StorageError: see `learn_into`.
    """
    if prompt is not None or tokenizer_data:
        raise ConfigError("a prompt or tokenizer data for 'mcl'", "neither", "they belong to causal-lm")
    recipe, _ = base_recipe(config)
    joined = join(read_sets(find(config.base, "learn").module, list(data)))
    if len(set(joined["id"])) != len(joined):
        raise RequestError("ids that come twice", "one id an item", "clusters are stored by id")
    if model is not None:
        check_kind(recipe, model)
        if model.modality not in joined.column_names:
            raise RequestError(
                f"an encoder of {model.modality}s and the columns {', '.join(joined.column_names)}",
                f"a column '{model.modality}'", "give another model, or rename a column",
            )  # fmt: skip
    settings = {
        "recipe": CARD.name, "config": config.model_dump(mode="json"), "data": [items_digest(joined)],
        "start": None if model is None else model.digest,
    }  # fmt: skip
    runs: list[Stages] = []

    def fit_into(work: Path) -> tuple[EnsembleEncoder, dict[str, Any], Cost]:
        run = Stages(config, joined, model, work, label)
        runs.append(run)
        with measure_cost(label) as cost:
            found = run.run()
            cost.items = len(joined) * config.stages
        return found, {"rows": len(joined), "stages": run.facts}, cost

    def beside(folder: Path) -> None:
        write_json(folder / CLUSTERS, {
            "ids": list(joined["id"]), "stages": [one.tolist() for one in runs[0].clusterings],
        })  # fmt: skip

    def reload() -> EnsembleEncoder:
        return cast(EnsembleEncoder, load_encoder(out))

    found = learn_into(out, settings, load=reload, fit=fit_into, beside=beside)
    if runs and first_process():
        shutil.rmtree(runs[0].work, ignore_errors=True)
    return found


CONFIG = MCLConfig
READ = read_rows
