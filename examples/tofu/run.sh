#!/usr/bin/env bash
# Train, forget by every method, audit, report. Goes on where it was stopped. See README.md.
set -euo pipefail
cd "$(dirname "$0")"
DATA="${DATA:-../../../shared/data/tofu}"
OUT="${OUT:-out}"
METHODS="${METHODS:-gradient-ascent gradient-difference npo simnpo dpo-idk task-vector finetune retrain}"

efface learn causal-lm --config model.yaml --data "$DATA/forget10.jsonl.gz" --data "$DATA/retain90.jsonl.gz" --out "$OUT/original"
efface learn causal-lm --config model.yaml --data "$DATA/retain90.jsonl.gz" --tokenizer-data "$DATA/forget10.jsonl.gz" \
  --out "$OUT/retrained"

for method in $METHODS; do
  settings=()
  case "$method" in
    npo | dpo-idk) settings=(beta=0.1) ;;
    task-vector) settings=(learning_rate=1e-3) ;;
    finetune) settings=(epochs=1) ;;
    retrain) settings=(epochs=30 learning_rate=1e-3 schedule=cosine warmup_ratio=0.03 seed=1) ;;
  esac
  efface forget "$method" --config forget.yaml --model "$OUT/original" --forget "$DATA/forget10_perturbed.jsonl.gz" \
    --retain "$DATA/retain90.jsonl.gz" --evaluate retain="$DATA/retain_perturbed.jsonl.gz" \
    --evaluate real_authors="$DATA/real_authors_perturbed.jsonl.gz" --evaluate world_facts="$DATA/world_facts_perturbed.jsonl.gz" \
    --scope-words "twenty fictitious authors of TOFU, twenty questions each" --out "$OUT/runs/$method" "${settings[@]}"
  efface audit "$OUT/runs/$method" --config audit.yaml --against "$OUT/retrained" || [ $? = 1 ]
done
efface report "$OUT"/runs/* --out "$OUT/report" --title "TOFU, forget10, on a model of 5 million parameters"
