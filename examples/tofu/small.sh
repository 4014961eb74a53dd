#!/usr/bin/env bash
# Every method on sixty authors and a small model: train, forget, audit, table. Goes on where it was stopped. See README.md.
set -euo pipefail
cd "$(dirname "$0")"
DATA="${DATA:-../../../shared/data/tofu}"
OUT="${OUT:-out-small}"
METHODS="${METHODS:-npo gradient-difference flat ga-alignment inverted-hinge loku wagle selective-amnesia who-is-harry-potter whp-decode needle rocr dp2unlearning in-context eco uld lol neuron-adjust key-space content-filter guard}"

[ -e "$OUT/data/names.json" ] || python subset.py "$DATA" "$OUT/data"
D="$OUT/data"
efface learn causal-lm --config small.yaml --data "$D/forget.jsonl" --data "$D/retain.jsonl" --out "$OUT/original"
efface learn causal-lm --config small.yaml --data "$D/retain.jsonl" --tokenizer-data "$D/forget.jsonl" --out "$OUT/retrained"

concepts=()
while IFS= read -r pair; do concepts+=(--concept "$pair"); done < <(
  python -c "import json, sys; [print(f'{a}={b}') for a, b in json.load(open(sys.argv[1])).items()]" "$D/names.json")

for run in $METHODS; do
  method="$run"
  settings=()
  more=()
  case "$run" in
    npo | wagle) settings=(beta=0.1) ;;
    ga-alignment) settings=(random_answers=2) ;;
    loku) settings=(learning_rate=1e-3 lora_rank=8) ;;
    selective-amnesia) settings=(forget_target=0.05) ;;
    whp-decode) method=who-is-harry-potter settings=(mode=decode) ;;
    needle) settings=(count=64 noise=replace relative=true scale=1) ;;
    rocr) settings=(projector=relative null_threshold=0.01) more=("${concepts[@]}") ;;
    dp2unlearning) settings=(base_learning_rate=0.5 base_epochs=3 base_batch_size=64 delta=1e-4 epochs=20 learning_rate=1.5e-3
      schedule=cosine warmup_ratio=0.03) ;;
    in-context) settings=(epochs=2 batch_size=16) ;;
    eco) settings=(n=8 metric=choice false_alarms=0.01) ;;
    uld) settings=(epochs=10 learning_rate=1e-3) ;;
    lol) settings=(learning_rate=5e-4) ;;
    key-space | neuron-adjust | content-filter) settings=() ;;
    guard) settings=(gate=words false_alarms=0.01 extractor=names decoding=masked) ;;
  esac
  efface forget "$method" --config small_forget.yaml --model "$OUT/original" --forget "$D/forget.jsonl" --retain "$D/retain.jsonl" \
    --evaluate retain="$D/retain_perturbed.jsonl" --scope-words "twenty fictitious authors of TOFU, twenty questions each" \
    "${more[@]}" --out "$OUT/runs/$run" "${settings[@]}"
  efface audit "$OUT/runs/$run" --config small_audit.yaml --against "$OUT/retrained" || [ $? = 1 ]
done
efface report "$OUT"/runs/* --out "$OUT/report" --title "TOFU, sixty authors, on a model of 2 million parameters"
python table.py "$OUT"/runs/*
