"""Concepts that a classifier uses: directions of its features, and a linear model on them that says which drive a class.

After Post-hoc concept bottlenecks (Yuksekgonul et al., arXiv 2205.15480) as Concept poisoning (arXiv 2405.15662) uses them. A
concept k is a vector c_k [d] with an intercept b_k: of a linear support vector machine between features of inputs with and
without it, C chosen on rows that it was not fitted on; or the text embedding of its name, where features and texts share a space
(CLIP). For features phi [d],

    p_k(x) = (c_k . phi(x) + b_k) / ||c_k||

and the bottleneck is a multinomial logistic regression W [K, N_c] on standardised p with an elastic net:
mean loss + a (r ||W||_1 + (1 - r) / 2 ||W||^2), a = 1e-5, r = 0.99. Concepts of class t are ranked by W[t, k].

Departures: p is standardised (on raw margins the ranking of weights is one of scales); one multinomial model by variance-reduced
stochastic gradients (SAGA) in place of one-against-rest by plain SGD, so that weights of classes compare. The hybrid
bottleneck's residual is left out: it helps to predict, not to rank. ConceptNet is not queried: give the list and its embeddings.
"""

from __future__ import annotations

import inspect
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efface.data.poisoning import concept_name
from efface.errors import ConfigError, InputError, RequestError, nearest

Floats = npt.NDArray[np.float64]
GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
"""C of the support vector machines; official code: {0.001 .. 10}."""
SAMPLES = 100
"""Rows with, and rows without a concept; as many again validate C (official code)."""
LEAST = 4
REGULARISATION, L1_RATIO = 1e-5, 0.99
ROUNDS = 5000


@dataclass(frozen=True)
class ConceptBank:
    """N_c directions of a feature space.

    Attributes:
        names: [N_c].
        vectors: [N_c, d], none of them zero.
        intercepts: [N_c].
        validation: [N_c] accuracy of each on rows that it was not fitted on; NaN where nothing was fitted.
        chosen: [N_c] C; NaN where nothing was fitted.
    """

    names: tuple[str, ...]
    vectors: Floats
    intercepts: Floats
    validation: Floats
    chosen: Floats

    def project(self, features: npt.ArrayLike) -> Floats:
        """p [N, N_c] of features [N, d].

        Raises:
            InputError: features of another width.
        """
        phi = np.asarray(features, dtype=np.float64)
        if phi.ndim != 2 or phi.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"features {list(phi.shape)} for concepts of width {self.vectors.shape[1]}", "features of the space that the "
                "concepts were made in", "make the concepts with this model",
            )  # fmt: skip
        norms = np.linalg.norm(self.vectors, axis=1)
        return np.asarray((phi @ self.vectors.T + self.intercepts) / norms, dtype=np.float64)

    def place(self, name: str) -> int:
        """Where a concept stands.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self.names:
            raise ConfigError(f"no concept '{name}'", None, nearest(name, self.names))
        return self.names.index(name)


def learn_bank(
    features: npt.ArrayLike, concepts: npt.ArrayLike, names: Sequence[str], *, samples: int = SAMPLES,
    grid: Sequence[float] = GRID, seed: int = 0,
) -> ConceptBank:  # fmt: skip
    """Concept activation vectors.

    Args:
        features: [N, d].
        concepts: [N, N_c] whether a row shows the concept.
        samples: rows of each side that fit the machine, and as many that validate C; fewer where there are fewer, half
            for each.
        grid: values of C; the best on the validation rows is taken, the smallest of equals.

    Raises:
        InputError: shapes that do not fit, or NaN.
        RequestError: a concept with fewer than four rows on a side.
    """
    phi, shown = np.asarray(features, dtype=np.float64), np.asarray(concepts)
    if phi.ndim != 2 or shown.shape != (len(phi), len(names)) or not np.isfinite(phi).all():
        raise InputError(
            f"features {list(phi.shape)} and concepts {list(shown.shape)} for {len(names)} names",
            "[N, d] numbers and [N, N_c]",
        )
    if not np.isin(shown, (0, 1)).all():
        raise InputError("a concept that is neither 0 nor 1", "whether the row shows it", "decide on a threshold")
    named = _names(names)
    rng = np.random.default_rng([seed, 0xCA5])
    vectors, intercepts, validation, chosen = [], [], [], []
    for k, name in enumerate(named):
        sides = [rng.permutation(np.flatnonzero(shown[:, k] == value)) for value in (1, 0)]
        if min(map(len, sides)) < LEAST:
            raise RequestError(
                f"the concept '{name}': {len(sides[0])} rows with it and {len(sides[1])} without", f"{LEAST} or more of each",
                "give more rows, or leave it out",
            )  # fmt: skip
        halves = [min(samples, len(side) // 2) for side in sides]
        fit = np.concatenate([side[:n] for side, n in zip(sides, halves, strict=True)])
        check = np.concatenate([side[n : 2 * n] for side, n in zip(sides, halves, strict=True)])
        vector, intercept, right, c = _machine(phi, shown[:, k], fit, check, grid)
        vectors.append(vector)
        intercepts.append(intercept)
        validation.append(right)
        chosen.append(c)
    return ConceptBank(named, np.stack(vectors), np.asarray(intercepts), np.asarray(validation), np.asarray(chosen))


def _machine(
    phi: Floats, shown: Any, fit: Any, check: Any, grid: Sequence[float]
) -> tuple[Floats, float, float, float]:
    """Vector, intercept, validation accuracy and C of the best machine."""
    from sklearn.svm import SVC

    best: tuple[Floats, float, float, float] | None = None
    for c in sorted(grid):
        machine = SVC(C=c, kernel="linear").fit(phi[fit], shown[fit])
        right = float(machine.score(phi[check], shown[check]))
        vector = np.asarray(machine.coef_[0], dtype=np.float64)
        if float(np.linalg.norm(vector)) > 0 and (best is None or right > best[2]):
            best = vector, float(machine.intercept_[0]), right, float(c)
    if best is None:
        raise InputError("features that do not vary with the concept", "features of a trained model")
    return best


def bank_of_embeddings(
    names: Sequence[str], vectors: npt.ArrayLike, intercepts: npt.ArrayLike | None = None
) -> ConceptBank:
    """A bank of ready vectors: text embeddings of the names (for a CLIP-like encoder), or vectors of another run.

    Args:
        vectors: [N_c, d].
        intercepts: [N_c]; default zero.

    Raises:
        InputError: shapes that do not fit, a zero vector, NaN, or a name twice.
    """
    found = np.asarray(vectors, dtype=np.float64)
    if found.ndim != 2 or len(found) != len(names) or not len(found):
        raise InputError(f"vectors {list(found.shape)} for {len(names)} concepts", "[N_c, d], one row a concept")
    if not np.isfinite(found).all() or not (np.linalg.norm(found, axis=1) > 0).all():
        raise InputError("a concept vector that is zero or no numbers", "finite vectors", "embed the names again")
    shifts = np.zeros(len(found)) if intercepts is None else np.asarray(intercepts, dtype=np.float64)
    if shifts.shape != (len(found),) or not np.isfinite(shifts).all():
        raise InputError(f"intercepts {list(shifts.shape)} for {len(found)} concepts", "one finite number each")
    nothing = np.full(len(found), np.nan)
    return ConceptBank(_names(names), found, shifts, nothing, nothing.copy())


def _names(names: Sequence[str]) -> tuple[str, ...]:
    clean = tuple(concept_name(str(name)) for name in names)
    twice = sorted({name for name in clean if clean.count(name) > 1})
    if twice:
        raise InputError(f"the concept '{twice[0]}' twice", "each once", "rename or drop one")
    return clean


def read_concepts(path: str | Path) -> dict[str, Any]:
    """The arrays of a concept file, an .npz without pickled objects.

    `names` [N_c] with `vectors` [N_c, d] (optionally `intercepts` [N_c]); or with `concepts` [M, N_c] of 0 and 1 and what they
    are about: `ids` [M] of rows of the request, or inputs of their own, `features` [M, ...] or `images` uint8 [M, H, W(, 3)].

    Raises:
        ConfigError: ConceptNet is asked for.
        RequestError: no such file, or one that holds neither.
    """
    if str(path).casefold() == "conceptnet":
        raise ConfigError(
            "concepts=conceptnet: nothing is fetched from the network", "concepts of your own",
            "write names and their vectors (text embeddings of the encoder, or 0/1 annotations of rows) to an .npz file and "
            "give concepts=FILE",
        )  # fmt: skip
    file = Path(path).expanduser()
    if file.suffix != ".npz" or not file.is_file():
        raise RequestError(
            f"no concept file at '{path}'", "an .npz with names and vectors or concepts", "check the path"
        )
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as held:
            found: Mapping[str, Any] = {name: held[name] for name in held.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"{file} is not a whole .npz file of plain arrays ({error})", None, "save it again"
        ) from error
    kinds = [name for name in ("vectors", "concepts") if name in found]
    about = [name for name in ("ids", "features", "images") if name in found]
    if "names" not in found or len(kinds) != 1 or (kinds == ["concepts"] and len(about) != 1):
        raise RequestError(
            f"{file} holds {', '.join(found) or 'nothing'}",
            "names with vectors, or names with concepts and one of ids, features, images", "mend the file",
        )  # fmt: skip
    return dict(found)


# -- the bottleneck ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bottleneck:
    """A linear model of classes on projections.

    Attributes:
        weights: W [K, N_c], on standardised projections.
        intercept: [K].
        mean, scale: [N_c] of the projections that it was fitted on.
        rounds: passes of the solver; `ROUNDS` says that it was stopped before it had converged.
    """

    weights: Floats
    intercept: Floats
    mean: Floats
    scale: Floats
    rounds: int

    def standardised(self, projections: npt.ArrayLike) -> Floats:
        """[N, N_c]."""
        return np.asarray((np.asarray(projections, dtype=np.float64) - self.mean) / self.scale)

    def logits(self, projections: npt.ArrayLike) -> Floats:
        """[N, K]."""
        return np.asarray(self.standardised(projections) @ self.weights.T + self.intercept)

    def accuracy(self, projections: npt.ArrayLike, labels: npt.ArrayLike) -> float:
        """Share of rows whose label has the largest logit."""
        return float(np.mean(self.logits(projections).argmax(1) == np.asarray(labels)))

    def ranked(self, target: int) -> list[int]:
        """Concepts by falling weight for a class: first those that speak most for it."""
        return [int(k) for k in np.argsort(-self.weights[target], kind="stable")]

    def most_similar(self, target: int) -> int:
        """The other class whose concept weights have the largest cosine with the target's: the donor.

        Raises:
            InputError: one class alone, or a target that no concept drives.
        """
        norms = np.linalg.norm(self.weights, axis=1)
        if len(self.weights) < 2 or not norms[target] > 0:
            raise InputError(
                f"no class is like class {target} by its concepts", "two classes and concepts that tell them apart"
            )
        cosines = (self.weights @ self.weights[target]) / np.maximum(norms * norms[target], 1e-300)
        cosines[target] = -np.inf
        return int(cosines.argmax())


def fit_bottleneck(
    projections: npt.ArrayLike, labels: npt.ArrayLike, classes: int, *, regularisation: float = REGULARISATION,
    l1_ratio: float = L1_RATIO, seed: int = 0,
) -> Bottleneck:  # fmt: skip
    """The elastic-net multinomial logistic regression of the module's equation.

    Args:
        projections: p [N, N_c].
        labels: [N] in [0, classes); every class is there.

    Raises:
        InputError: shapes that do not fit, a class without rows, or a concept that does not vary.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    p, y = np.asarray(projections, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or y.shape != (len(p),) or not np.isfinite(p).all():
        raise InputError(f"projections {list(p.shape)} and labels {list(y.shape)}", "[N, N_c] numbers and [N]")
    if classes < 2 or set(y.tolist()) != set(range(classes)):
        raise InputError(
            f"labels of {len(set(y.tolist()))} of {classes} classes", "two classes or more, each with rows"
        )
    mean, scale = p.mean(0), p.std(0)
    if not (scale > 1e-12 * np.maximum(1, np.abs(mean))).all():
        raise InputError(f"concept {int(scale.argmin())} is the same on every row", "one that varies", "leave it out")
    model = LogisticRegression(
        C=1 / (regularisation * len(p)),
        l1_ratio=l1_ratio,
        solver="saga",
        max_iter=ROUNDS,
        random_state=seed,
        **_elastic(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `rounds` says so
        model.fit((p - mean) / scale, y)
    weights, intercept = np.asarray(model.coef_), np.asarray(model.intercept_)
    if classes == 2:  # scikit-learn gives the one class against the other
        weights, intercept = np.concatenate([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
    return Bottleneck(weights, intercept, mean, scale, int(np.max(model.n_iter_)))


def _elastic() -> dict[str, str]:
    """scikit-learn before 1.8 must be told that `l1_ratio` counts; later ones say that `penalty` goes."""
    from sklearn.linear_model import LogisticRegression

    known = inspect.signature(LogisticRegression).parameters.get("penalty")
    return {"penalty": "elasticnet"} if known is not None and known.default == "l2" else {}


__all__ = [
    "GRID", "Bottleneck", "ConceptBank", "bank_of_embeddings", "fit_bottleneck", "learn_bank", "read_concepts",
]  # fmt: skip
