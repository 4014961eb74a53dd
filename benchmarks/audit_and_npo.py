"""The audit and an NPO epoch against the usual way, in one run on one machine: prints ratios.

The usual way, written out plainly here: one pass of the model for every metric and set (as evaluation suites do that know
metrics but no score table), logits over the whole sequence, one answer form at a time, a batch in the order of the data; and
NPO with a live copy of the reference that runs in every step. Both sides give the same numbers; the script checks it.

    python benchmarks/audit_and_npo.py [--rounds 2] [--width 384] [--depth 6] [--new-tokens 32]
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ["EFFACE_CACHE"] = tempfile.mkdtemp(prefix="efface-bench-")

from efface.audit.evidence import AuditConfig
from efface.audit.metrics.text import rouge
from efface.audit.run import opened, run_audit
from efface.data.persons import persons_request
from efface.data.request import Request
from efface.forget.method import find_method
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.run.cost import measure_cost
from efface.subjects.prompts import collate

PASSES = {"forget": ("probability", "exact_memorisation", "extraction_strength", "loss", "zlib", "min_k", "min_k_plus_plus"),
          "holdout": ("loss", "zlib", "min_k", "min_k_plus_plus")}  # fmt: skip
"""Metrics that each run their own pass over the answers in the usual way (open-unlearning's forget10 suite)."""


set_passes = 0


def full_logits(subject: Any, rows: list[Any], size: int = 32) -> list[np.ndarray]:
    """Log-probabilities of the answer tokens by a forward pass with logits everywhere, in the data's order."""
    global set_passes
    set_passes += 1
    found = []
    with subject.evaluating() as model:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = collate(part, subject.pad_id)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
            logp = logits[:, :-1].log_softmax(-1)
            picked = logp.gather(-1, batch["input_ids"][:, 1:].unsqueeze(-1)).squeeze(-1)
            for i, row in enumerate(part):
                found.append(picked[i, row.n_prompt - 1 : len(row.ids) - 1].numpy())
    return found


def usual_audit(subject: Any, request: Request, new_tokens: int) -> dict[str, float]:
    """A pass a metric; one form at a time."""
    figures = {}
    for name, data in request.evaluation_sets().items():
        answers = subject.encode_rows(data)
        for metric in PASSES.get(name, ("probability",)):
            logp = full_logits(subject, answers)
            figures[f"{name}/{metric}"] = float(np.mean([np.exp(row.mean()) for row in logp]))
        if "paraphrased_answer" in data.column_names and name != "holdout":
            full_logits(subject, subject.encode_rows(data, column="paraphrased_answer"))
        if "perturbed_answer" in data.column_names and name != "holdout":
            for k in range(len(data["perturbed_answer"][0])):
                rows = [
                    subject.encode(q, wrong[k])
                    for q, wrong in zip(data["question"], data["perturbed_answer"], strict=True)
                ]
                full_logits(subject, rows)
        if name != "holdout":
            prompts = subject.encode_prompts(data)
            for start in range(0, len(prompts), 32):
                texts = subject.generate(prompts[start : start + 32], max_new_tokens=new_tokens)
                for text, answer in zip(texts, data["answer"][start : start + 32], strict=True):
                    rouge(subject.decode(text), answer)
    return figures


def usual_npo(subject: Any, request: Request, config: Any) -> float:
    """NPO with a retain NLL, a live reference and logits everywhere; returns the last loss."""
    model, reference = copy.deepcopy(subject.model).train(), copy.deepcopy(subject.model).eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    forget, retain = subject.encode_rows(request.forget), subject.encode_rows(request.retain)

    def summed(net: Any, rows: list[Any]) -> torch.Tensor:
        batch = collate(rows, subject.pad_id)
        logits = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        logp = logits[:, :-1].log_softmax(-1).gather(-1, batch["labels"][:, 1:].clamp_min(0).unsqueeze(-1)).squeeze(-1)
        return (logp * (batch["labels"][:, 1:] != -100)).sum(-1)

    rng = np.random.default_rng(0)
    value = 0.0
    for _ in range(int(config.epochs)):
        order = rng.permutation(len(forget))
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
            part = [forget[i] for i in order[start : start + config.batch_size]]
            keep = [retain[i] for i in rng.integers(0, len(retain), config.batch_size)]
            with torch.no_grad():
                ref = summed(reference, part)
            loss = (
                -(2 / config.beta) * torch.nn.functional.logsigmoid(-config.beta * (summed(model, part) - ref)).mean()
            )
            loss = loss - summed(model, keep).sum() / sum(row.n_targets for row in keep)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            value = float(loss.detach())
    return value


def timed(label: str, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, peak MiB above the start, result."""
    with measure_cost(label) as cost:
        result = work()
    return cost.seconds, cost.peak_mb, result


def main() -> None:
    """Time both sides alternately and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    request = persons_request(0)
    texts = [f"{row['question']} {row['answer']}" for data in request.sets().values() for row in data]
    config = CausalLMConfig(
        tokenizer="bpe", vocabulary=4096, width=arguments.width, depth=arguments.depth, heads=8, context=128
    )
    subject = new_model(config, texts)
    print(f"{subject}, {torch.get_num_threads()} threads")
    suite = AuditConfig(suite=("tofu", "membership", "memorisation"), max_new_tokens=arguments.new_tokens)
    npo = find_method("npo")
    fit = npo.configure({"learning_rate": 1e-4, "epochs": arguments.epochs, "batch_size": 16})
    seconds: dict[str, list[float]] = {"audit, usual": [], "audit, efface": [], "npo, usual": [], "npo, efface": []}
    peaks: dict[str, float] = {}
    for _ in range(arguments.rounds):
        os.environ["EFFACE_CACHE"] = tempfile.mkdtemp(prefix="efface-bench-")
        work = Path(os.environ["EFFACE_CACHE"])
        jobs: dict[str, Callable[[], Any]] = {
            "audit, usual": lambda: usual_audit(subject, request, arguments.new_tokens),
            "audit, efface": lambda: run_audit(request, {"unlearned": opened(subject)}, suite),
            "npo, usual": lambda: usual_npo(subject, request, fit),
            "npo, efface": lambda work=work: npo.fit(subject, request, fit, work=work / "w", out=work / "e"),
        }
        results = {}
        for label, job in jobs.items():
            start = time.perf_counter()
            taken, peak, results[label] = timed(label, job)
            seconds[label].append(taken)
            peaks[label] = max(peaks.get(label, 0.0), peak)
            print(f"  {label}: {time.perf_counter() - start:.1f} s")
        found = {row.metric: row for row in results["audit, efface"].conclusion.findings}
        ours = found["tofu/forget_probability"].unlearned.value
        assert abs(ours - results["audit, usual"]["forget/probability"]) < 1e-5, "both sides must give the same number"
    print(f"\nscoring passes over a set, the usual way: {set_passes // arguments.rounds}")
    print("\n| job | seconds (best of rounds) | peak MiB | ratio |\n|---|---|---|---|")
    for job in ("audit", "npo"):
        slow, fast = min(seconds[f"{job}, usual"]), min(seconds[f"{job}, efface"])
        print(f"| {job}, the usual way | {slow:.1f} | {peaks[f'{job}, usual']:.0f} | 1 |")
        print(f"| {job}, efface | {fast:.1f} | {peaks[f'{job}, efface']:.0f} | {slow / fast:.2f} times faster |")


if __name__ == "__main__":
    main()
