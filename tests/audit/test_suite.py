"""Suites: found by themselves, resolved settings, shared passes, and rows of their own that utility does not count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efface.audit import suite as suites_module
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.folder import audit
from efface.audit.run import opened, run_audit
from efface.audit.suite import Rows, Suite, suites, with_needs
from efface.audit.verdict import UNTESTED, conclude
from efface.errors import ConfigError
from efface.run.settings import Settings


def test_suites_are_found_and_say_what_they_need() -> None:
    found = suites()
    assert "removal" in found
    assert with_needs(("removal",))[-1] == "removal"
    assert {"tofu", "relearning", "quantisation"} <= set(with_needs(("removal",)))
    assert with_needs(("tofu", "membership")) == ("tofu", "membership")
    for name, suite in found.items():
        assert name == suite.name
        for metric in suite.firing:
            assert metric.startswith(f"{name}/")
        assert set(suite.covers) <= set(UNTESTED)
        suite.config()  # every setting has a default


def test_settings_of_suites_are_resolved_and_stored() -> None:
    config = AuditConfig.parse({"suite": ("removal",), "removal": {"rows": 20}})
    assert config.of_suite("removal").rows == 20
    assert config.options["removal"]["prompt_tokens"] == 8
    assert AuditConfig.parse(config.model_dump()) == config
    with pytest.raises(ConfigError, match="rows"):
        AuditConfig.parse({"suite": ("removal",), "removal": {"row": 20}})
    with pytest.raises(ConfigError, match="removals"):
        AuditConfig.parse({"suite": ("tofu",), "removals": {}})


class Passes:
    """Counts what goes through a model."""

    def __init__(self, subject: Any) -> None:
        self.count = 0
        self.handle = subject.model.register_forward_hook(self._see)

    def _see(self, *_: Any) -> None:
        self.count += 1


@pytest.fixture
def counted(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    passes = Passes(tiny)
    yield passes
    passes.handle.remove()


class OwnSettings(Settings):
    """Nothing."""


def _own(name: str, part: str = "same") -> Suite:
    return Suite(
        name=name, sets=lambda request, settings: {part: Rows(request.forget)}, findings=lambda evidence: [],
        config=OwnSettings,
    )  # fmt: skip


def test_suites_over_the_same_rows_share_their_passes(
    tiny: Any, request_: Any, counted: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forwards(*names: str) -> int:
        counted.count = 0
        audit(tiny, request_, suite=names)
        return counted.count

    known = {**suites(), "first": _own("first"), "second": _own("second")}
    for place in (
        suites_module,
        __import__("efface.audit.evidence", fromlist=["x"]),
        __import__("efface.audit.run", fromlist=["x"]),
    ):
        monkeypatch.setattr(place, "suites", lambda: known)
    assert forwards("tofu") > 0
    assert forwards("tofu") == 0
    assert forwards("tofu", "membership", "memorisation") == 0
    assert forwards("first") == 0  # its rows are the forget set, which was scored for the others
    assert forwards("tofu", "first", "second") == 0


def test_rows_of_a_suite_are_no_utility(
    tiny: Any, request_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = {**suites(), "first": _own("first", "part")}
    for place in (
        suites_module,
        __import__("efface.audit.evidence", fromlist=["x"]),
        __import__("efface.audit.run", fromlist=["x"]),
    ):
        monkeypatch.setattr(place, "suites", lambda: known)
    config = AuditConfig.parse({"suite": ("tofu", "first")})
    evidence = run_audit(request_, {"unlearned": opened(tiny)}, config).evidence
    assert "first.part" in evidence.tables["unlearned"]
    assert "first.part" not in evidence.sets()
    evidence.save(tmp_path)
    again = Evidence.load(tmp_path)
    assert set(again.tables["unlearned"]) == set(evidence.tables["unlearned"])
    assert conclude(again) == conclude(evidence)


def test_real_suites_share_passes(tiny: Any, request_: Any, counted: Passes) -> None:
    names = [name for name, suite in suites().items() if suite.attack is None]
    for name in names:
        audit(tiny, request_, suite=(name,))
    counted.count = 0
    audit(tiny, request_, suite=tuple(names))
    assert counted.count == 0
