# FusionRoute (arXiv 2601.05106) on experts of your own: sourced by the recipes beside it, which name the models.
#
# Needs: pip install "frcli[train]" huggingface_hub datasets, a GPU as the recipe says, and the disk that it says.
# Every step is skipped when its result is there, and goes on where it was when it was cut off: run it again at will.
#
# What a recipe sets, and anybody can set otherwise:
#   NAME            of the bundle
#   BASE            the instruction expert, of which the router is made, too: a folder or owner/name on the hub
#   EXPERTS         "name=folder-or-owner/name ..." of the others
#   QUANT           in which experts run
#   WORK            where everything goes
#   DEVICE          cuda, cpu
#   SAMPLES, PAIRS  rows of PerfectBlend, pairs of OpenHermesPreferences; or files of rows: DATA, PREFERENCES
#   RATE            learning rate; the paper has 1e-5 for all weights, where a LoRA, which begins at zero, needs more
#   TRAIN           more options of frcli train router

set -eu
: "${QUANT:=Q8_0}" "${WORK:=$NAME}" "${DEVICE:=cuda}" "${SAMPLES:=5000}" "${PAIRS:=2500}" "${RATE:=1e-4}" "${TRAIN:=}"
: "${DATA:=$WORK/perfectblend.jsonl}" "${PREFERENCES:=$WORK/preferences.jsonl}"
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$WORK"

# 1. Models. The router is trained on the folder of the base; experts and tokenizer are the GGUFs that will run.
folder() { # of a model; fetched if it is a name on the hub
    if [ -d "$1" ]; then echo "$1"; return; fi
    hf download "$1" --local-dir "$WORK/$(basename "$1")" --include "*.json" "*.jinja" "*.safetensors" "tokenizer.model" >&2
    echo "$WORK/$(basename "$1")"
}
gguf() { # NAME MODEL
    [ -e "$WORK/$1.gguf" ] || frcli convert expert "$2" -o "$WORK/$1.gguf" --quant "$QUANT"
}
ROUTER=$(folder "$BASE")
gguf general "$ROUTER"
NAMES="--expert general=$WORK/general.gguf"
for expert in $EXPERTS; do
    gguf "${expert%%=*}" "$(folder "${expert#*=}")"
    NAMES="$NAMES --expert ${expert%%=*}=$WORK/${expert%%=*}.gguf"
done

# 2. Data that no expert was trained on for this purpose: a mixture of instructions, and pairs of answers.
[ -e "$DATA" ] || python "$HERE/rows.py" perfectblend "$SAMPLES" "$DATA"
[ -e "$PREFERENCES" ] || python "$HERE/rows.py" preferences "$PAIRS" "$PREFERENCES"

# 3. Phase 1: L_LM + 1/3 L_expert (equation 2). Phase 2: CDPO on the pairs, mixed with the rows (algorithm 1), of which the
#    experts have said already what they say.
router() { # FOLDER OPTIONS
    out=$1
    shift
    # shellcheck disable=SC2086
    [ -e "$out/router.safetensors" ] || frcli train router --base "$WORK/general.gguf" --router "$ROUTER" $NAMES -o "$out" --rows "$WORK/rows" \
        --objective sft --learning-rate "$RATE" --device "$DEVICE" $TRAIN "$@"
}
router "$WORK/sft" --data "$DATA"
router "$WORK/cdpo" --data "$DATA" --pairs "$PREFERENCES" --beta 0.1 --start "$WORK/sft"

# 4. A bundle of it.
[ -e "$WORK/router.onnx" ] || frcli convert router --base "$ROUTER" --trained "$WORK/cdpo" --vocab "$WORK/general.gguf" -o "$WORK/router.onnx"
# shellcheck disable=SC2086
[ -e "$WORK/bundle/bundle.toml" ] || frcli models new "$NAME" --base "$WORK/general.gguf" $NAMES --router "$WORK/router.onnx" --link -o "$WORK/bundle"
echo "frcli chat $WORK/bundle"
