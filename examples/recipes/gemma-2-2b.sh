#!/bin/sh
# The paper's second set: Gemma-2-2B with MergeBench's fine-tunes for instructions, maths and code, a router of 2B.
#
# Not run here: there was neither a GPU nor a hub. Worked out (docs/training.md): 17 GB of GPU memory, 40 GB of disk, and
# some 5 hours with 5,000 rows and 2,500 pairs, nearly all of them for the experts' rows (the paper has 40 times as many).
: "${NAME:=gemma-2-2b-fusionroute}"
: "${BASE:=MergeBench/gemma-2-2b-it_instruction}"
: "${EXPERTS:=math=MergeBench/gemma-2-2b-it_math code=MergeBench/gemma-2-2b-it_coding}"
: "${TRAIN:=--rank 64 --batch-tokens 2048 --max-length 2048 --save-memory --seed 1}"
. "$(dirname "$0")/fusionroute.sh"
