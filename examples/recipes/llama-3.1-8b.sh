#!/bin/sh
# The paper's first set: Llama-3.1-8B-Instruct with MergeBench's fine-tunes for maths and code, a router of 8B.
#
# Not run here: there was neither a GPU nor a hub. Worked out (docs/training.md): 38 GB of GPU memory, 100 GB of disk, and
# some 5 hours with 5,000 rows and 2,500 pairs, nearly all of them for the experts' rows (the paper has 40 times as many).
: "${NAME:=llama-3.1-8b-fusionroute}"
: "${BASE:=meta-llama/Llama-3.1-8B-Instruct}"
: "${EXPERTS:=math=MergeBench/Llama-3.1-8B-Instruct_math code=MergeBench/Llama-3.1-8B-Instruct_coding}"
: "${TRAIN:=--rank 64 --batch-tokens 8192 --max-length 2048 --save-memory --seed 1}"
. "$(dirname "$0")/fusionroute.sh"
