#!/usr/bin/env bash
# The quartet from its data: experts, routers, and every score of RESULTS.md.
#
#     models/smollm2-quartet/train.sh DATA OUT [STEP...]
#
# DATA has the JSON lines that README.md names; OUT is where everything goes. Steps are taken in the order in which they
# are given, all of them if none is. What is there is not made again, and what was cut off goes on. THREADS (2) is how
# many threads each takes, LIMIT (25) how many items of each task are asked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
data=$1 out=$2
shift 2
all=(math code logic baseline sft fused gated pairs sft-cdpo fused-cdpo l16 l12 nll tasks bench results)
threads=${THREADS:-2} limit=${LIMIT:-25}
base=$(echo "${FRCLI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/frcli}"/files/*/SmolLM2-135M-Instruct.Q4_1.gguf)
[ -f "$base" ] || { echo "no base: run frcli models pull smollm2-quartet first" >&2; exit 1; }
mkdir -p "$out/results"

# Nine tenths of each file, from its first row on, are the experts'.
math=("$data"/{gsm8k_train.jsonl@0:6725,wordproblems_train.jsonl@0:2824})
code=("$data"/mbpp_train.jsonl@0:345)
logic=("$data"/logic_{proofwriter_train.jsonl@0:2700,folio_train.jsonl@0:903,logicaldeduction_train.jsonl@0:1080,arlsat_train.jsonl@0:1426})
# The mixed rest, which no expert saw: the routers, their heads and the baseline have these rows and no others. The last
# three lines are prompts that need two domains.
mixed=(
  "$data"/{gsm8k_train.jsonl@6725:6975,wordproblems_train.jsonl@2824:2974,mbpp_train.jsonl@345:384*2}
  "$data"/logic_{proofwriter_train.jsonl@2700:2850,folio_train.jsonl@903:973,logicaldeduction_train.jsonl@1080:1140,arlsat_train.jsonl@1426:1466}
  "$data"/self_instruct_seed.jsonl@0:100*2
  "$data/gsm8k_train.jsonl@6975:7005+$data/mbpp_train.jsonl@345:375"
  "$data/wordproblems_train.jsonl@2974:3004+$data/logic_proofwriter_train.jsonl@2850:2880"
  "$data/mbpp_train.jsonl@354:384+$data/logic_logicaldeduction_train.jsonl@1140:1170"
)
# Preference pairs come from prompts of the mixed rest whose answers can be graded; long answers take long to sample.
graded=(
  "$data"/{gsm8k_train.jsonl@6725:6775,wordproblems_train.jsonl@2824:2874,mbpp_train.jsonl@345:384}
  "$data"/logic_{proofwriter_train.jsonl@2700:2750,folio_train.jsonl@903:953,logicaldeduction_train.jsonl@1080:1120,arlsat_train.jsonl@1426:1466}
)

dev() { # dev FIRST STOP SEEDS: those dev rows of the columns of the NLL table; prompts of two domains are made of the rows behind them
  local a=$1 b=$2 c=$((2 * $2 - $1)) d=$((3 * $2 - 2 * $1)) set columns
  columns=("math=$data"/{gsm8k,svamp}_dev.jsonl@"$a:$b" "code=$data/mbpp_dev.jsonl@$a:$b")
  for set in proofwriter folio logicaldeduction prontoqa arlsat; do columns+=("logic=$data/logic_${set}_dev.jsonl@$a:$b"); done
  columns+=("general=$data/self_instruct_seed.jsonl@$3")
  columns+=("mixed=$data/gsm8k_dev.jsonl@$b:$c+$data/mbpp_dev.jsonl@$b:$c")
  columns+=("mixed=$data/svamp_dev.jsonl@$b:$c+$data/logic_folio_dev.jsonl@$b:$c")
  columns+=("mixed=$data/logic_prontoqa_dev.jsonl@$c:$d+$data/mbpp_dev.jsonl@$c:$d")
  mapfile -t options < <(rows "${columns[@]}")
}

expert() { # expert NAME OPTION... : a LoRA expert and its GGUF
  local name=$1
  shift
  [ -e "$out/$name.gguf" ] && return
  [ -e "$out/$name/adapter_config.json" ] || frcli train expert --base "$base" -o "$out/$name" --seed 1 --threads "$threads" "$@"
  frcli convert adapter "$out/$name" --base "$base" -o "$out/$name.gguf"
}

rows() { printf -- '--data\n%s\n' "$@"; }

router() { # router NAME OPTION... : a router, its ONNX file, and a bundle around it
  local name=$1 quartet=(--expert general --expert "math=$out/math.gguf" --expert "code=$out/code.gguf" --expert "logic=$out/logic.gguf")
  shift
  mapfile -t options < <(rows "${mixed[@]}")
  if [ ! -e "$out/$name/router.safetensors" ]; then
    frcli train router --base "$base" -o "$out/$name" --seed 1 --threads "$threads" --rows "$out/rows" \
      --learning-rate 7e-4 "${quartet[@]}" "${options[@]}" "$@"
  fi
  [ -e "$out/$name.onnx" ] || frcli convert router --base "$base" --trained "$out/$name/router.safetensors" -o "$out/$name.onnx"
  [ -e "$out/bundles/$name" ] || frcli models new "$name" -o "$out/bundles/$name" --link --base "$base" "${quartet[@]}" --router "$out/$name.onnx"
}

score() { # score NAME BUNDLE OPTION... : NLL of the answers in the rows that options name
  local file=$out/results/$1.json
  [ -e "$file" ] && return
  frcli eval nll "$2" --threads "$threads" "${options[@]}" "${@:3}" --force -o "$file.part"
  sed "s|$data/||g" "$file.part" > "$file.named" # where the data was does not matter
  mv "$file.named" "$file"
  rm "$file.part"
}

beside() { # beside ROUTER... : options for routers that share the experts
  local name
  routers=()
  for name in "$@"; do routers+=(--router "$name=$out/$name.onnx"); done
}

compare() { # compare NAME BUNDLE POLICY... : accuracy on eight tasks
  local name=$1 bundle=$2 policy tasks=() policies=()
  shift 2
  [ -e "$out/results/tasks-$name.json" ] && return
  for policy in gsm8k=gsm8k svamp=svamp mbpp=mbpp folio=logic_folio proofwriter=logic_proofwriter prontoqa=logic_prontoqa \
    logicaldeduction=logic_logicaldeduction arlsat=logic_arlsat; do
    tasks+=(-t "frcli_${policy%=*}=$data/${policy#*=}_dev.jsonl")
  done
  for policy in "$@"; do policies+=(--policy "$policy"); done
  frcli eval compare "$bundle" "${tasks[@]}" "${policies[@]}" --limit "$limit" --parallel 8 --threads "$threads" -o "$out/results/tasks-$name.json"
}

for step in "${@:-${all[@]}}"; do
  echo "== $step" >&2
  case $step in
    math | code | logic)
      declare -n own=$step
      mapfile -t options < <(rows "${own[@]}")
      case $step in # the questions about one text share it
        math) expert math "${options[@]}" ;;
        code) expert code --epochs 3 "${options[@]}" ;;
        logic) expert logic --pack --batch-tokens 1024 "${options[@]}" ;;
      esac
      ;;
    baseline) # one adapter for everything, as large as the router's and trained on the same rows
      mapfile -t options < <(rows "${mixed[@]}")
      expert all "${options[@]}" --learning-rate 7e-4 --rank 32 --modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj
      [ -e "$out/bundles/baseline" ] || frcli models new baseline -o "$out/bundles/baseline" --link --base "$base" \
        --expert general --expert "all=$out/all.gguf" --policy sum
      ;;
    sft) router sft ;;
    fused) router fused --objective fused ;;
    gated) router gated --objective fused --gate ;;
    pairs)
      mapfile -t options < <(rows "${graded[@]}")
      [ -e "$out/pairs.jsonl" ] || frcli train pairs "$out/bundles/fused" --samples 4 --threads "$threads" -o "$out/pairs.jsonl" "${options[@]}"
      ;;
    sft-cdpo) router sft-cdpo --start "$out/sft" --pairs "$out/pairs.jsonl" --learning-rate 1e-4 ;;
    fused-cdpo) router fused-cdpo --objective fused --start "$out/fused" --pairs "$out/pairs.jsonl" --learning-rate 1e-4 ;;
    l16 | l12) # cheaper: layers left out by least harm, healed by the router of full depth
      router "$step" --layers "${step#l}" --start "$out/sft" --teacher "$out/sft.onnx" --epochs 2
      ;;
    nll)
      dev 80 90 100:110 # rows of their own, to choose gamma by
      beside sft l16 l12
      score tune "$out/bundles/gated" --gammas 0,0.25,0.5,0.75,1 "${routers[@]}"
      dev 75 85 100:110 # and the prior
      for set in proofwriter folio logicaldeduction prontoqa arlsat; do options+=(--data "logic=$data/logic_${set}_dev.jsonl@130:140"); done
      priors=(--policy prompt-router)
      for prior in 0.1 0.25 0.5 1 2; do priors+=(--policy "fusionroute,gamma=0.25,prior=$prior"); done
      score tune-prior "$out/bundles/sft" --gammas 0,0.25 "${priors[@]}"
      dev 0 25 110:140
      beside sft-cdpo fused fused-cdpo gated l16 l12
      score nll "$out/bundles/sft" --gammas 0,0.25,1 "${routers[@]}" --policy prompt-router --policy sum --policy packllm
      score nll-prior "$out/bundles/sft" --gammas 0.25 --policy fusionroute,gamma=0.25,prior=0.1 --policy fusionroute,gamma=0.25,prior=0.5
      score nll-baseline "$out/bundles/baseline" --policy sum
      ;;
    tasks)
      compare quartet "$out/bundles/sft" fusionroute fusionroute,gamma=0.25 fusionroute,gamma=0 prompt-router \
        expert:general expert:math expert:code expert:logic sum packllm
      compare prior "$out/bundles/sft" fusionroute,gamma=0.25,prior=0.1
      compare baseline "$out/bundles/baseline" expert:all sum
      for name in sft-cdpo fused fused-cdpo gated; do compare "$name" "$out/bundles/$name" fusionroute; done
      for name in l16 l12; do compare "$name" "$out/bundles/$name" fusionroute,gamma=0.25; done
      ;;
    bench)
      for name in sft l16 l12; do
        [ -e "$out/results/bench-$name.json" ] && continue
        policy=fusionroute,gamma=0.25
        [ "$name" = sft ] && policy+=,prior=0.1
        frcli bench "$out/bundles/$name" --policy "$policy" --threads "$threads" --sequences "" --no-idle -o json > "$out/results/bench-$name.part"
        mv "$out/results/bench-$name.part" "$out/results/bench-$name.json"
      done
      ;;
    results)
      [ "$here/results" -ef "$out/results" ] || cp "$here/results/results.toml" "$out/results/"
      python "$here/../../benchmarks/results.py" "$out/results/results.toml" -o "$out/RESULTS.md"
      ;;
    *) echo "no step $step: ${all[*]}" >&2; exit 2 ;;
  esac
done
