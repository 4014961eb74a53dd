#!/usr/bin/env bash
# Prepare, train the small model, tune by each style, audit, baselines, tables. Goes on where it was stopped. See README.md.
set -euo pipefail
cd "$(dirname "$0")"
DATA="${DATA:-${EFFACE_DATA:-../../../shared/data}}"
OUT="${OUT:-out}"
STYLES="${STYLES:-lora fft llt}"
SETS="${SETS:-age authors_first_80 authors}"
SEEDS="${SEEDS:-0}"

python prepare.py "$DATA" "$OUT/data"
efface learn causal-lm --config model.yaml --data "$OUT/data/base.jsonl" --tokenizer-data "$OUT/data/words.jsonl" --out "$OUT/base"

for set in $SETS; do
  case "$set" in
    age) train=age_train tests=(in_domain=age_valid out_of_domain=world_facts) epochs=34 ;;
    authors_first_80) train=authors_first_80 tests=(in_domain=authors_last_20) epochs=250 ;;
    authors) train=authors tests=(out_of_domain=world_facts) epochs=200 ;;
  esac
  evaluate=()
  for test in "${tests[@]}"; do evaluate+=(--evaluate "${test%%=*}=$OUT/data/${test##*=}.jsonl"); done
  for style in $STYLES; do
    case "$style" in
      lora) settings=(scope=lora learning_rate=3e-3) ;;
      fft) settings=(scope=all) ;;
      llt) settings=(scope=layers) ;;
    esac
    for seed in $SEEDS; do
      run="$OUT/runs/$set-$style-$seed"
      efface forget in-context --config forget.yaml --model "$OUT/base" --forget "$OUT/data/$train.jsonl" "${evaluate[@]}" \
        --scope-words "facts about real persons, authors and places, named in the prompt" --out "$run" "${settings[@]}" \
        epochs="$epochs" seed="$seed"
      efface audit "$run" --config audit.yaml || [ $? = 1 ]
      efface report "$run"
    done
  done
done
python baselines.py "$OUT" > "$OUT/baselines.part" && mv "$OUT/baselines.part" "$OUT/baselines.json"
python table.py "$OUT"
