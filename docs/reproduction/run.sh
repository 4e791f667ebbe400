#!/usr/bin/env bash
# The experiments of the four papers, on the images that are at hand. What they are and what came out is in
# docs/reproduction.md. Every command resumes: run this again after an interruption and it goes on from there.
set -euo pipefail

usage() {
    cat >&2 <<'END'
usage: run.sh [--quick] [--cifar DIR] [--photos DIR] [--photo-model OPTIONS] [-o OUT] [PART…]

  --cifar DIR         CIFAR-10 as images: test/CLASS/….jpg|png
  --photos DIR        ImageNet photos named III_….JPEG, III being the class number
  --photo-model OPTS  the model of the photos (default: "--model torchvision:squeezenet1_1")
  --quick             20 images and small searches, to see that everything works
  -o OUT              where stages and results go (default: reproduction)
  PART                masks wang2021 targeted imagenet su2017 dong2020 qian2021 defences few-pixel exhaustive
                      (default: all whose images are given)
END
    exit 2
}

cifar='' photos='' photo_model='--model torchvision:squeezenet1_1' out=reproduction quick='' parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --cifar | --photos | --photo-model | -o) [ $# -gt 1 ] || usage ;;
    esac
    case $1 in
        --cifar) cifar=$2; shift 2 ;;
        --photos) photos=$2; shift 2 ;;
        --photo-model) photo_model=$2; shift 2 ;;
        --quick) quick=yes; shift ;;
        -o) out=$2; shift 2 ;;
        -*) usage ;;
        *) parts+=("$1"); shift ;;
    esac
done
[ -n "$cifar$photos" ] || usage
known=' masks wang2021 targeted imagenet su2017 dong2020 qian2021 defences few-pixel exhaustive '
for part in "${parts[@]}"; do
    [[ $known = *" $part "* ]] || usage
done
mkdir -p "$out"

if [ -n "$quick" ]; then
    images=20 few=5 search=(--population 50 --generations 10) queries=500 long=50 photo_count=10 trained=20
else
    images=100 few=10 search=(--population 400 --generations 100) queries=10000 long=1000 photo_count=200 trained=100
fi
read -r -a network <<< "$photo_model"
if [ -n "$photos" ]; then
    (cd "$photos" && for file in *; do echo "$file,$((10#${file%%_*}))"; done) > "$out/labels.csv"
fi

# NAME COMMAND…: one stage of that name. Exit code 1 says that some images failed; the rest of the run goes on.
stage() {
    local name=$1
    shift
    echo "== $name: pixelsem $*" >&2
    pixelsem "$@" -q -o "$out/$name" > /dev/null || [ $? -eq 1 ]
}

# NAME COMMAND…: tables (and figures) of an evaluation, below OUT/results.
result() {
    local name=$1
    shift
    echo "== results/$name: pixelsem evaluate $*" >&2
    pixelsem evaluate "$@" -q -o "$out/results/$name" > /dev/null
}

masks() {
    if [ -n "$cifar" ]; then
        stage cifar-grabcut segment --method grabcut "$cifar/test" --sample $images --seed 1
    fi
    if [ -n "$photos" ]; then
        stage photos-u2netp segment --method u2netp "$photos" --limit $photo_count
    fi
}

# Tables I, II and IV and Figs. 3 to 6 of wang2021: AllConv, untargeted, one, three and five pixels; the paper's own
# constraint; and both regions reduced to the same number of pixels.
wang2021() {
    local pixels de=(attack de "$out/cifar-grabcut" --region all --precision bf16 --seed 1 "${search[@]}")
    for pixels in 1 3 5; do
        stage de-$pixels "${de[@]}" --pixels $pixels
    done
    stage de-1-wang2021 "${de[@]}" --preset wang2021
    stage de-1-match-area "${de[@]}" --match-area
    result wang2021 success "$out"/de-[135] "$out/de-1-wang2021"
    result wang2021-match-area success "$out/de-1-match-area"
    result wang2021-figures figures "$out"/de-[135]
}

targeted() {
    stage de-1-targeted attack de "$out/cifar-grabcut" --region all --precision bf16 --seed 1 "${search[@]}" \
        --targeted --limit $few
    result wang2021-targeted success "$out/de-1-targeted"
    result wang2021-targeted-figures figures "$out/de-1-targeted"
}

# Tables III and IV of wang2021 at 224×224, saliency masks.
imagenet() {
    stage photos-de-1 attack de "$out/photos-u2netp" "${network[@]}" --labels "$out/labels.csv" --region all \
        --resize squash --seed 1 "${search[@]}" --limit $few
    result imagenet success "$out/photos-de-1"
}

su2017() {
    stage su2017 attack de "$cifar/test" --sample $few --seed 1 --preset su2017 "${search[@]}" --targeted \
        --precision bf16
    result su2017 success "$out/su2017"
    result su2017-figures figures "$out/su2017"
}

# What is attacked, as NAME and the arguments that say so.
cifar_images() { set_images cifar "$cifar/test" --sample $images --seed 1; }
photo_images() { set_images photos "$photos" --limit $photo_count "${network[@]}" --labels "$out/labels.csv"; }
set_images() { set=$1; source=("${@:2}"); }
each_set() {
    if [ -n "$cifar" ]; then cifar_images; "$1"; fi
    if [ -n "$photos" ]; then photo_images; "$1"; fi
}

# Table 1 of dong2020 and its ablations (gradient, region, δ, superpixel size, φ, algorithm).
dong2020() { each_set dong2020_of; }
dong2020_of() {
    local name delta size phi gradient algorithm keep
    for name in fgm i-fgm mi-fgm sa-fgm sai-fgm m-sai-fgm; do
        stage $set-$name attack $name "${source[@]}"
    done
    result $set-dong2020 distortion "$out"/$set-{fgm,i-fgm,mi-fgm,sa-fgm,sai-fgm,m-sai-fgm}
    for gradient in avg max; do
        stage $set-sai-fgm-$gradient attack sai-fgm --gradient $gradient "${source[@]}"
    done
    result $set-gradient distortion "$out"/$set-sai-fgm{,-avg,-max}
    for algorithm in lsc seeds; do
        stage $set-sai-fgm-$algorithm attack sai-fgm --superpixels $algorithm "${source[@]}"
    done
    result $set-superpixels distortion "$out"/$set-sai-fgm{,-lsc,-seeds}
    for delta in 1 2; do
        for name in i-fgm sai-fgm; do
            stage $set-$name-delta$delta attack $name --delta $delta "${source[@]}"
        done
    done
    result $set-delta sweep "$out"/$set-{i-fgm,sai-fgm}{,-delta1,-delta2} --x delta
    for size in 2 3 8; do
        stage $set-sai-fgm-size$size attack sai-fgm --size $size "${source[@]}"
    done
    result $set-size sweep "$out"/$set-sai-fgm{,-size2,-size3,-size8} --x size
    for phi in 0 0.6667; do
        stage $set-sai-fgm-phi$phi attack sai-fgm --phi $phi "${source[@]}"
    done
    result $set-phi sweep "$out"/$set-sai-fgm{,-phi0,-phi0.6667} --x phi
    # Figure 2: which half of the noise carries the attack.
    stage $set-gradcam-all segment --method gradcam "${source[@]}"
    for keep in foreground background; do
        stage $set-split-$keep attack split "$out/$set-i-fgm" --keep $keep --halves --masks "$out/$set-gradcam-all"
    done
    result $set-split distortion "$out"/$set-split-{foreground,background}
}

# Table I of qian2021 and Figs. 3, 9 and 10. LaVAN's 10,000 iterations are cut to 1,000.
qian2021() { each_set qian2021_of; }
qian2021_of() {
    local name steps temperature tau
    local short=()
    [ "$set" = cifar ] || short=(--limit $few)
    stage $set-cfr attack cfr "${source[@]}"
    stage $set-pgd attack pgd "${source[@]}"
    stage $set-m-di2-fgsm attack m-di2-fgsm "${source[@]}"
    stage $set-cw attack cw --steps $long "${source[@]}" "${short[@]}"
    stage $set-jsma attack jsma "${source[@]}" "${short[@]}"
    stage $set-adv-patch attack adv-patch --steps $long --early-stop "${source[@]}" "${short[@]}"
    stage $set-lavan attack lavan --steps $long "${source[@]}" "${short[@]}"
    result $set-qian2021 distortion "$out"/$set-{cfr,pgd,m-di2-fgsm,cw,jsma,adv-patch,lavan}
    for steps in 5 10 30; do
        for temperature in 0.01 0.1 1 2; do
            stage $set-cfr-$steps-$temperature attack cfr --steps $steps --temperature $temperature "${source[@]}"
        done
    done
    result $set-cfr-steps sweep "$out"/$set-cfr-{5,10,30}-{0.01,0.1,1,2} --x steps --y temperature
    for tau in 0 0.1 0.3 0.4; do
        stage $set-cfr-tau$tau attack cfr --tau $tau "${source[@]}"
    done
    result $set-cfr-tau sweep "$out"/$set-cfr{,-tau0,-tau0.1,-tau0.3,-tau0.4} --x tau
    result $set-occlusion occlusion "$out/$set-cfr"
}

# Figs. 4 to 6 and Tables 2 and 3 of dong2020.
defences() { each_set defences_of; }
defences_of() {
    local name
    result $set-robustness robustness "$out"/$set-{i-fgm,sai-fgm} --defense jpeg:q=95,75,55,35 \
        --defense resize:gamma=1.5,2,3 --defense avg-pool:kernel=3,5 --defense max-pool:kernel=3,5 --defense tvm \
        --defense dnn-jpeg --defense bit-depth:depth=3,5 --defense median:kernel=3
    if [ "$set" = photos ]; then
        for name in fgm i-fgm sai-fgm; do
            stage $set-detector-$name defend detect train "$out/$set-$name"
        done
        result $set-detection detection "$out"/$set-detector-{fgm,i-fgm,sai-fgm}
    fi
}

# Sparse-RS against differential evolution at the same number of queries.
few-pixel() {
    local pixels
    for pixels in 1 3 5; do
        stage sparse-rs-$pixels attack sparse-rs "$cifar/test" --sample $images --seed 1 --pixels $pixels \
            --queries $queries
        stage de-same-$pixels attack de "$cifar/test" --sample $images --seed 1 --pixels $pixels --population 100 \
            --generations $((queries / 100))
    done
    result few-pixel success "$out"/{sparse-rs,de-same}-[135]
    result few-pixel-defences robustness "$out"/de-same-[135] --defense jpeg:q=95,75,55 --defense median:kernel=3 \
        --defense avg-pool:kernel=3 --defense tvm --defense bit-depth:depth=3,5
}

exhaustive() {
    stage exhaustive attack exhaustive "$cifar/test" --sample $images --seed 1
    result exhaustive vulnerability "$out/exhaustive" "$out"/de-same-1
}

if [ ${#parts[@]} -eq 0 ]; then
    parts=(masks)
    [ -z "$cifar" ] || parts+=(wang2021 targeted su2017)
    [ -z "$photos" ] || parts+=(imagenet)
    parts+=(dong2020 qian2021 defences)
    [ -z "$cifar" ] || parts+=(few-pixel exhaustive)
fi
for part in "${parts[@]}"; do
    "$part"
done
