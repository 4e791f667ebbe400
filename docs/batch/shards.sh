#!/bin/sh
# Attack the images of a folder in N parts on this machine, join them, check the result and print its tables.
#
#   IMAGES=photos N=4 RUN=results ./shards.sh --population 100 --generations 10
#
# Arguments are options of `pixelsem attack de`. Stopped or killed, the same call goes on from there.
set -eu
images=${IMAGES:?a folder of images} n=${N:-4} run=${RUN:-pixelsem-run}
whole=$run/attack-joined

masks=$(pixelsem segment --run "$run" --method grabcut "$images")

list=$(mktemp)
trap 'rm -f "$list"' EXIT
i=1
while [ "$i" -le "$n" ]; do
    # Writes its stage's path to stdout; to run the parts side by side, end this line with & and wait below.
    pixelsem attack de --run "$run" --region all --shard "$i/$n" "$@" "$masks" >>"$list"
    i=$((i + 1))
done

pixelsem stage merge "$whole" - <"$list" | pixelsem stage verify | pixelsem evaluate --run "$run" -
