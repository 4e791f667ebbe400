#!/usr/bin/env bash
# The experiments of the four papers, on the images that are at hand. What they are and what came out is in
# docs/reproduction.md. Every command resumes: run this again after an interruption and it goes on from there.
set -euo pipefail

usage() {
    cat >&2 <<'END'
usage: run.sh [--quick] [--cifar DIR] [--photos DIR] [--photo-model OPTIONS] [--more-photos DIR]
              [--hardened LIST] [--hardened-model NAME] [--generations N] [-o OUT] [PART…]

  --cifar DIR         CIFAR-10 as images: test/CLASS/….jpg|png
  --photos DIR        ImageNet photos named III_….JPEG, III being the class number
  --photo-model OPTS  the model of the photos (default: "--model torchvision:squeezenet1_1")
  --more-photos DIR   photos without classes (ECSSD), which the part detection takes too
  --hardened LIST     the weights that the part hardened attacks, as fast=FILE,pgd=FILE (and clean=FILE where the
                      model has none of its own); or train: first train both, which takes train/CLASS/… below --cifar
  --hardened-model M  the architecture of these (default: allconv)
  --generations N     of the searches by differential evolution (default: the papers' 100)
  --quick             20 images and small searches, to see that everything works
  -o OUT              where stages and results go (default: reproduction)
  PART                masks wang2021 targeted imagenet su2017 dong2020 qian2021 transfer defences detection
                      few-pixel exhaustive hardened (default: all whose images and weights are given)
END
    exit 2
}

cifar='' photos='' photo_model='--model torchvision:squeezenet1_1' more_photos='' out=reproduction quick='' parts=()
hardened='' hardened_model=allconv generations=''
while [ $# -gt 0 ]; do
    case $1 in
        --cifar | --photos | --photo-model | --more-photos | --hardened* | --generations | -o) [ $# -gt 1 ] || usage ;;
    esac
    case $1 in
        --cifar) cifar=$2; shift 2 ;;
        --photos) photos=$2; shift 2 ;;
        --photo-model) photo_model=$2; shift 2 ;;
        --more-photos) more_photos=$2; shift 2 ;;
        --hardened) hardened=$2; shift 2 ;;
        --hardened-model) hardened_model=$2; shift 2 ;;
        --generations) generations=$2; shift 2 ;;
        --quick) quick=yes; shift ;;
        -o) out=$2; shift 2 ;;
        -*) usage ;;
        *) parts+=("$1"); shift ;;
    esac
done
[ -n "$cifar$photos" ] || usage
known=' masks wang2021 targeted imagenet su2017 dong2020 qian2021 transfer defences detection few-pixel exhaustive hardened '
for part in "${parts[@]}"; do
    [[ $known = *" $part "* ]] || usage
    case $part in
        wang2021 | targeted | su2017 | transfer | few-pixel | exhaustive) [ -n "$cifar" ] || usage ;;
        imagenet | detection) [ -n "$photos" ] || usage ;;
        hardened) [ -n "$cifar" ] && [ -n "$hardened" ] || usage ;;
    esac
done
mkdir -p "$out"

if [ -n "$quick" ]; then
    images=20 few=5 search=(--population 50 --generations "${generations:-10}") queries=500 long=50 photo_count=10 more_count=10
    epochs=1 tested='--sample 200'
else
    images=100 few=10 search=(--population 400 --generations "${generations:-100}") queries=10000 long=1000 photo_count=200 more_count=700
    epochs=12 tested=
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

# Tables I, II and IV and Figs. 3 to 6 of wang2021: untargeted, one, three and five pixels, AllConv on all images, NiN
# and VGG-16 on half of them; the paper's own constraint; and both regions reduced to the same number of pixels.
wang2021() {
    local model pixels made=()
    result wang2021-accuracy accuracy --models allconv,nin,vgg16 --data "$cifar/test" $tested
    for model in allconv nin vgg16; do
        for pixels in 1 3 5; do
            wang2021_stage de-$model-$pixels --model $model --pixels $pixels
            made+=("$out/de-$model-$pixels")
        done
    done
    wang2021_stage de-allconv-1-wang2021 --preset wang2021
    wang2021_stage de-allconv-1-match-area --match-area
    result wang2021 success "${made[@]}" "$out/de-allconv-1-wang2021"
    result wang2021-match-area success "$out/de-allconv-1-match-area"
    result wang2021-figures figures "${made[@]}"
}

targeted() {
    local model made=()
    for model in allconv nin vgg16; do
        wang2021_stage de-$model-1-targeted --model $model --targeted --sample $few
        made+=("$out/de-$model-1-targeted")
    done
    result wang2021-targeted success "${made[@]}"
    result wang2021-targeted-figures figures "${made[@]}"
}

# NAME OPTIONS…: a search in the three regions of the masks.
wang2021_stage() {
    local name=$1 half=()
    shift
    [[ $name = *allconv* || $name = *targeted ]] || half=(--sample $((images / 2)))
    stage $name attack de "$out/cifar-grabcut" --region all --precision bf16 --seed 1 "${search[@]}" "${half[@]}" "$@"
}

# Tables III and IV of wang2021 at 224×224, saliency masks.
imagenet() {
    stage photos-de-1 attack de "$out/photos-u2netp" "${network[@]}" --labels "$out/labels.csv" --region all \
        --resize squash --seed 1 "${search[@]}"
    result imagenet success "$out/photos-de-1"
    result imagenet-figures figures "$out/photos-de-1"
}

# Su et al. 2017: one pixel anywhere, towards each of the nine other classes.
su2017() {
    local model made=()
    for model in allconv nin; do
        stage su2017-$model attack de "$cifar/test" --sample $images --seed 1 --model $model --preset su2017 \
            "${search[@]}" --targeted --precision bf16
        made+=("$out/su2017-$model")
    done
    result su2017 success "${made[@]}"
    result su2017-figures figures "${made[@]}"
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
    # Figure 2: which half of the noise carries the attack, at δ = 2 as in §3.2.
    stage $set-gradcam-all segment --method gradcam "${source[@]}"
    for keep in foreground background; do
        stage $set-split-$keep attack split "$out/$set-i-fgm-delta2" --keep $keep --halves --masks "$out/$set-gradcam-all"
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
    stage $set-gradcam-all segment --method gradcam "${source[@]}"
    result $set-occlusion occlusion "$out/$set-gradcam-all"
}

# Fig. 7 of qian2021: what was made on one network, given to the others.
transfer() {
    local model name made=()
    for model in allconv nin vgg16; do
        local source=("$cifar/test" --sample $images --seed 1 --model $model)
        for name in pgd m-di2-fgsm cfr; do
            stage transfer-$model-$name attack $name "${source[@]}"
        done
        stage transfer-$model-cw attack cw --steps $long "${source[@]}"
        made+=("$out"/transfer-$model-{pgd,m-di2-fgsm,cw,cfr})
    done
    result transfer transfer "${made[@]}" --models allconv,nin,vgg16
}

# Figs. 4 to 6 and Tables 3 and 4 of dong2020, of the attacks of the part dong2020.
defences() { each_set defences_of; }
defences_of() {
    result $set-robustness robustness "$out"/$set-{i-fgm,sai-fgm} --defense resize:gamma=1.5/2/3 \
        --defense jpeg:q=95/75/55/35/15 --defense dnn-jpeg:q=90/70/50/30 --defense avg-pool:kernel=3/5/7 \
        --defense max-pool:kernel=3/5/7 --defense tvm --defense bit-depth:depth=2/3/4 --defense median:kernel=3/5
}

# Table 2 of dong2020 at δ = 4, with CFR and one pixel beside. All photos take part, those without classes too: the
# label is what the model says. One pixel seldom fools a network at this size, so that its failures are learnt from too.
detection() {
    local name source=("$out/detection-photos" "${network[@]}" --labels predicted)
    mkdir -p "$out/detection-photos"
    link_photos "$photos" $photo_count
    [ -z "$more_photos" ] || link_photos "$more_photos" $more_count
    for name in fgm i-fgm sai-fgm cfr; do
        stage detection-$name attack $name "${source[@]}"
    done
    for name in 2 4; do
        stage detection-sai-fgm-beta$name attack sai-fgm --merge-threshold $name "${source[@]}"
    done
    stage detection-de-1 attack de --pixels 1 --population 100 --generations 3 "${source[@]}"
    for name in fgm i-fgm sai-fgm{,-beta2,-beta4} cfr; do
        stage detector-$name defend detect train "$out/detection-$name"
    done
    stage detector-de-1 defend detect train "$out/detection-de-1" --attempts
    result detection detection "$out"/detector-{fgm,i-fgm,sai-fgm,sai-fgm-beta2,sai-fgm-beta4,cfr,de-1}
    for name in fgm i-fgm sai-fgm; do
        stage detector-srm-$name defend detect train "$out/detection-$name" --features srm --sample $images
    done
    result detection-srm detection "$out"/detector-srm-{fgm,i-fgm,sai-fgm}
}

# DIR COUNT: put the first photos of a folder among those of the part detection.
link_photos() {
    local file files=("$1"/*)
    for file in "${files[@]:0:$2}"; do
        ln -sf "$(realpath "$file")" "$out/detection-photos/"
    done
}

# Table II of qian2021 with one pixel beside: PGD, C&W, CFR and differential evolution on networks that were trained on
# images as they are, by single steps and by PGD; once over the images that each is right on, once over those of all.
hardened() {
    local pair name entries made=()
    IFS=, read -r -a entries <<< "$hardened"
    if [ "$hardened" = train ]; then
        entries=()
        for name in fast pgd; do
            stage hardened-train-$name defend train --data "$cifar" --model "$hardened_model" --method $name \
                --epochs $epochs
            entries+=("$name=$out/hardened-train-$name/$hardened_model.safetensors")
        done
    fi
    [[ ",$hardened" = *,clean=* ]] || entries=(clean= "${entries[@]}")
    for pair in "${entries[@]}"; do
        hardened_of "${pair%%=*}" "${pair#*=}"
    done
    result hardened distortion "${made[@]}"
    result hardened-common distortion --common "${made[@]}"
}

# NAME FILE: every attack on one network, in stages that are noted in `made`. The weights are copied, so that the
# tables call the network by its name.
hardened_of() {
    local name=$1 model=("$cifar/test" --sample $images --seed 1 --model "$hardened_model")
    if [ -n "$2" ]; then
        mkdir -p "$out/weights"
        cp "$2" "$out/weights/$name.${2##*.}"
        model+=(--weights "$out/weights/$name.${2##*.}")
    fi
    stage hardened-$name-pgd attack pgd "${model[@]}"
    stage hardened-$name-cw attack cw --steps $long "${model[@]}"
    stage hardened-$name-cfr attack cfr "${model[@]}"
    stage hardened-$name-de-1 attack de --pixels 1 --precision bf16 "${model[@]}" "${search[@]}"
    made+=("$out"/hardened-$name-{pgd,cw,cfr,de-1})
}

# Sparse-RS against differential evolution at the same number of queries, and what transforms leave of these changes.
few-pixel() {
    local pixels
    for pixels in 1 3 5; do
        stage sparse-rs-$pixels attack sparse-rs "$cifar/test" --sample $images --seed 1 --pixels $pixels \
            --queries $queries
        stage de-same-$pixels attack de "$cifar/test" --sample $images --seed 1 --pixels $pixels --population 100 \
            --generations $((queries / 100))
    done
    result few-pixel success "$out"/{sparse-rs,de-same}-[135]
    result few-pixel-defences robustness "$out"/de-same-[135] --defense resize:gamma=1.5/2 \
        --defense jpeg:q=95/75/55 --defense dnn-jpeg --defense avg-pool:kernel=3 --defense max-pool:kernel=3 \
        --defense median:kernel=3 --defense tvm --defense bit-depth:depth=3/5
}

exhaustive() {
    stage exhaustive attack exhaustive "$cifar/test" --sample $images --seed 1
    result exhaustive vulnerability "$out/exhaustive" "$out"/de-same-1
}

if [ ${#parts[@]} -eq 0 ]; then
    parts=(masks)
    [ -z "$cifar" ] || parts+=(wang2021 targeted su2017)
    [ -z "$photos" ] || parts+=(imagenet)
    parts+=(dong2020 qian2021)
    [ -z "$cifar" ] || parts+=(transfer)
    parts+=(defences)
    [ -z "$photos" ] || parts+=(detection)
    [ -z "$cifar" ] || parts+=(few-pixel exhaustive)
    [ -z "$cifar" ] || [ -z "$hardened" ] || parts+=(hardened)
fi
for part in "${parts[@]}"; do
    "$part"
done
