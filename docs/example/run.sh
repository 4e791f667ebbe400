#!/usr/bin/env bash
# Every table and figure of `pixelsem evaluate`, small: 100 CIFAR-10 images, 50 ImageNet photos. What is to be seen is
# in README.md beside this file. Every command resumes: run this again after an interruption and it goes on from there.
set -euo pipefail

usage() {
    cat >&2 <<'END'
usage: run.sh [--cifar DIR] [--photos DIR] [--models LIST] [--photo-model OPTIONS] [-o OUT]

  --cifar DIR         CIFAR-10 as images: test/CLASS/….jpg|png (one of the two may be left out, and run later)
  --photos DIR        ImageNet photos named III_….JPEG, III being the class number
  --models LIST       networks for CIFAR-10 (default: allconv); with several, say allconv,nin, they are compared
  --photo-model OPTS  the model of the photos (default: "--model torchvision:squeezenet1_1")
  -o OUT              where stages and results go (default: example)
END
    exit 2
}

cifar='' photos='' models=allconv photo_model='--model torchvision:squeezenet1_1' out=example
while [ $# -gt 1 ]; do
    case $1 in
        --cifar) cifar=$2 ;;
        --photos) photos=$2 ;;
        --models) models=$2 ;;
        --photo-model) photo_model=$2 ;;
        -o) out=$2 ;;
        *) usage ;;
    esac
    shift 2
done
[ $# -eq 0 ] && [ -n "$cifar$photos" ] || usage

IFS=, read -r -a networks <<< "$models"
first=${networks[0]}
read -r -a photo_network <<< "$photo_model"
mkdir -p "$out/results"

# NAME COMMAND…: one stage of that name. Exit code 1 says that some images failed; the rest of the run goes on.
stage() {
    local name=$1
    shift
    echo "== $name: pixelsem $*" >&2
    pixelsem "$@" -q -o "$out/$name" > /dev/null || [ $? -eq 1 ]
}

# NAME COMMAND…: tables and figures of an evaluation, below OUT/results. What is there is kept.
result() {
    local name=$1
    shift
    [ -e "$out/results/$name" ] && return
    echo "== results/$name: pixelsem evaluate $*" >&2
    pixelsem evaluate "$@" -q -o "$out/part-$name" > /dev/null
    mv "$out/part-$name" "$out/results/$name"
}

figures=(--format png)

# 100 CIFAR-10 images.
on_cifar() {
    stage cifar-grabcut segment --method grabcut "$cifar/test" --sample 100 --seed 1

    # wang2021: one and three pixels, untargeted and targeted.
    local model name images=("$out/cifar-grabcut" --region all --precision bf16 --seed 1)
    local de=(attack de "${images[@]}" --population 100 --generations 10) de_stages=() targeted=()
    for model in "${networks[@]}"; do
        stage $model-de-1 "${de[@]}" --model $model
        stage $model-de-3 "${de[@]}" --model $model --pixels 3 --limit 20
        stage $model-de-1-targeted "${de[@]}" --model $model --targeted --limit 6
        de_stages+=("$out"/$model-de-{1,3})
        targeted+=("$out"/$model-de-1-targeted)
    done
    result accuracy accuracy --models $models --data "$cifar" --sample 500 --seed 1
    result success success "${de_stages[@]}" "${targeted[@]}"
    result figures figures "${de_stages[@]}" "${targeted[@]}" "${figures[@]}"
    result panels-cifar.png panels "$out/$first-de-1" --rows 6 --size 128
    result report.html report "${de_stages[@]}" --gallery 150 --title 'pixelsem: an example'

    # Is a region more fragile, or only bigger? Equal areas, borders moved, searches repeated.
    stage match-area "${de[@]}" --model $first --match-area --limit 30
    stage grow "${de[@]}" --model $first --grow 2 --limit 30
    stage repeats "${de[@]}" --model $first --repeats 3 --limit 4
    result areas success "$out"/{$first-de-1,match-area,grow}
    result repeats success "$out/repeats"
    result borders figures "$out"/{$first-de-1,grow} "${figures[@]}"

    # Every pixel alone, and what that explains of the search.
    stage exhaustive attack exhaustive "$out/cifar-grabcut" --model $first --region all --limit 2
    result vulnerability vulnerability "$out"/{exhaustive,$first-de-1}

    # qian2021: steps and temperature of CFR.
    local steps temperature sweep=()
    for steps in 5 20; do
        for temperature in 0.1 1; do
            stage cfr-$steps-$temperature attack cfr --steps $steps --temperature $temperature \
                "$out/cifar-grabcut" --model $first
            sweep+=("$out/cfr-$steps-$temperature")
        done
    done
    result sweep sweep "${sweep[@]}" --x steps --y temperature "${figures[@]}"
    result sweep-heat-map sweep "${sweep[@]}" --x steps --y temperature --heat-map "${figures[@]}"

    # Transfer to each network, and to each behind a defence that the attack does not know of.
    local substitutes=()
    for model in "${networks[@]}"; do
        stage $model-pgd attack pgd "$out/cifar-grabcut" --model $model
        substitutes+=("$out"/$model-{de-1,pgd})
    done
    for model in "${networks[@]}"; do
        printf '%s: {model: %s}\n%s + JPEG: {model: %s, defense: ["jpeg:quality=55"]}\n' $model $model $model $model
    done > "$out/models.yaml"
    result transfer transfer "${substitutes[@]}" --models "$out/models.yaml" "${figures[@]}"

    # Two runs of one search, scored in two ways.
    for name in dense incremental; do
        stage $name attack de "$out/cifar-grabcut" --model $first --population 100 --generations 5 --limit 5 \
            --seed 1 --evaluator $name
    done
    echo '== results/diff.txt: pixelsem evaluate diff' >&2
    pixelsem evaluate diff "$out/dense" "$out/incremental" > "$out/results/diff.txt" || [ $? -eq 1 ]
}

# 50 ImageNet photos.
on_photos() {
    (cd "$photos" && for file in *; do echo "$file,$((10#${file%%_*}))"; done) > "$out/labels.csv"
    local name network=("${photo_network[@]}" --labels "$out/labels.csv")
    stage photos-u2netp segment --method u2netp "$photos" --limit 50
    stage photos-gradcam segment --method gradcam "$photos" --limit 50 "${network[@]}"
    result masks masks "$out"/photos-{gradcam,u2netp}
    result texture texture "$out/photos-u2netp"
    result occlusion occlusion "$out/photos-gradcam" --labels "$out/labels.csv" "${figures[@]}"

    # qian2021 and dong2020: attacks by gradients, their distortion, and what transforms leave of them.
    for name in i-fgm sai-fgm cfr pgd; do
        stage photos-$name attack $name "$photos" --limit 50 "${network[@]}"
    done
    local gradients=("$out"/photos-{i-fgm,sai-fgm,cfr,pgd})
    result distortion distortion "${gradients[@]}"
    result panels-match-l2.png panels "$out"/photos-{i-fgm,sai-fgm,cfr} --match-l2 --rows 3
    result robustness robustness "$out"/photos-{i-fgm,sai-fgm} --defense jpeg:q=95/75/55/35 \
        --defense avg-pool:kernel=3/5/7 --defense resize:gamma=1.5/2/3 "${figures[@]}"
    for name in i-fgm sai-fgm; do
        stage detector-$name defend detect train "$out/photos-$name"
    done
    result detection detection "$out"/detector-{i-fgm,sai-fgm} "${figures[@]}"

    # wang2021 at 224×224; five pixels, as few photos give way to one within so few generations.
    stage photos-de attack de "$out/photos-u2netp" "${network[@]}" --resize squash --region all --pixels 5 \
        --population 40 --generations 5 --limit 4 --seed 1
    result photos success "$out/photos-de"
    result panels-photos.png panels "$out/photos-de" --rows 2 --no-difference
}

[ -z "$cifar" ] || on_cifar
[ -z "$photos" ] || on_photos
