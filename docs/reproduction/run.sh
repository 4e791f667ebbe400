#!/usr/bin/env bash
# The experiments of the four papers, on the images that are at hand. What they are and what came out is in
# docs/reproduction.md. Every command resumes: run this again after an interruption and it goes on from there.
set -euo pipefail

usage() {
    cat >&2 <<'END'
usage: run.sh [--quick] [--cifar DIR] [--photos DIR] [--photo-model OPTIONS] [--more-photos DIR]
              [--hardened LIST] [--hardened-model NAME] [--images N] [--few N] [--many N] [--more N]
              [--generations N] [--queries N] [--steps N] [--srm N] [-o OUT] [PART…]

  --cifar DIR         CIFAR-10 as images: test/CLASS/….jpg|png
  --photos DIR        ImageNet photos named III_….JPEG, III being the class number
  --photo-model OPTS  the model of the photos (default: "--model torchvision:squeezenet1_1")
  --more-photos DIR   photos without classes (ECSSD), which the part detection takes too
  --hardened LIST     the weights that the part hardened attacks, as fast=FILE,pgd=FILE (and clean=FILE where the
                      model has none of its own); or train: first train both, which takes train/CLASS/… below --cifar
  --hardened-model M  the architecture of these (default: allconv)
  --images N          CIFAR-10 images, drawn by a seed (default: 100; NiN and VGG-16 under wang2021 get half of them)
  --few N             of them, for what takes longest: targeted attacks, long ones on photos (default: 10)
  --many N            CIFAR-10 images of the part regions (default: 500, as many as wang2021 drew)
  --more N            of --more-photos (default: 700)
  --generations N     of the searches by differential evolution (default: the papers' 100)
  --queries N         of Sparse-RS, and of the search beside it (default: 10000)
  --steps N           of C&W, patches and LaVAN (default: 1000)
  --srm N             images whose SRM features are taken, seconds each (default: 100)
  --quick             20 images and small searches, to see that everything works
  -o OUT              where stages and results go (default: reproduction)
  PART                masks wang2021 targeted regions imagenet su2017 dong2020 qian2021 transfer defences
                      detection few-pixel exhaustive hardened (default: all whose images and weights are given)

Figures need the extra `report` of pixelsem, SRM features the extra `steganalysis`.
END
    exit 2
}

cifar='' photos='' photo_model='--model torchvision:squeezenet1_1' more_photos='' out=reproduction quick='' parts=()
hardened='' hardened_model=allconv images='' few='' many='' more='' generations='' queries='' steps='' srm=''
while [ $# -gt 0 ]; do
    case $1 in
        --quick | -h | --help) ;;
        -*) [ $# -gt 1 ] || usage ;;
    esac
    case $1 in
        --cifar) cifar=$2 ;;
        --photos) photos=$2 ;;
        --photo-model) photo_model=$2 ;;
        --more-photos) more_photos=$2 ;;
        --hardened) hardened=$2 ;;
        --hardened-model) hardened_model=$2 ;;
        --images) images=$2 ;;
        --few) few=$2 ;;
        --many) many=$2 ;;
        --more) more=$2 ;;
        --generations) generations=$2 ;;
        --queries) queries=$2 ;;
        --steps) steps=$2 ;;
        --srm) srm=$2 ;;
        -o) out=$2 ;;
        --quick) quick=yes; shift; continue ;;
        -*) usage ;;
        *) parts+=("$1"); shift; continue ;;
    esac
    shift 2
done
[ -n "$cifar$photos" ] || usage
known=' masks wang2021 targeted regions imagenet su2017 dong2020 qian2021 transfer defences detection few-pixel exhaustive hardened '
for part in "${parts[@]}"; do
    [[ $known = *" $part "* ]] || usage
    case $part in
        wang2021 | targeted | regions | su2017 | transfer | few-pixel | exhaustive) [ -n "$cifar" ] || usage ;;
        imagenet | detection) [ -n "$photos" ] || usage ;;
        hardened) [ -n "$cifar" ] && [ -n "$hardened" ] || usage ;;
    esac
done
mkdir -p "$out"

if [ -n "$quick" ]; then
    small=(20 5 50 10 10 500 50 10 20)
    photo_count=20 epochs=1 tested='--sample 200' subspace='--subspace 200'
else
    small=(100 10 400 700 100 10000 1000 100 500)
    photo_count=200 epochs=12 tested='' subspace=''
fi
images=${images:-${small[0]}} few=${few:-${small[1]}} more=${more:-${small[3]}} queries=${queries:-${small[5]}}
steps=${steps:-${small[6]}} srm=${srm:-${small[7]}} many=${many:-${small[8]}}
generations=${generations:-${small[4]}}
search=(--population "${small[2]}" --generations "$generations")
read -r -a network <<< "$photo_model"
if [ -n "$photos" ]; then
    (cd "$photos" && for file in *; do echo "$file,$((10#${file%%_*}))"; done) > "$out/labels.csv"
fi

# NAME COMMAND…: one stage of that name, once in a run. Exit code 1 says that some images failed; the rest goes on.
made_before=' '
stage() {
    local name=$1
    shift
    [[ $made_before != *" $name "* ]] || return 0
    echo "== $name: pixelsem $*" >&2
    pixelsem "$@" -q -o "$out/$name" > /dev/null || [ $? -eq 1 ]
    made_before+="$name "
}

# NAME COMMAND…: tables (and figures) of an evaluation, below OUT/results.
result() {
    local name=$1
    shift
    echo "== results/$name: pixelsem evaluate $*" >&2
    pixelsem evaluate "$@" -q -o "$out/results/$name" > /dev/null
}

masks() {
    [ -z "$cifar" ] || cifar_masks
    [ -z "$photos" ] || photo_masks
}
cifar_masks() { stage cifar-grabcut segment --method grabcut "$cifar/test" --sample "$images" --seed 1; }
photo_masks() { stage photos-u2netp segment --method u2netp "$photos" --limit $photo_count; }

# Tables I, II and IV and Figs. 3 to 6 of wang2021: untargeted, one, three and five pixels, AllConv on all images, NiN
# and VGG-16 on half of them; the paper's own constraint; both regions reduced to the same number of pixels; and a
# search that is five times as long.
wang2021() {
    local model pixels made=()
    cifar_masks
    result wang2021-accuracy accuracy --models allconv,nin,vgg16 --data "$cifar/test" $tested
    for model in allconv nin vgg16; do
        for pixels in 1 3 5; do
            wang2021_stage de-$model-$pixels --model $model --pixels $pixels
            made+=("$out/de-$model-$pixels")
        done
    done
    wang2021_stage de-allconv-1-wang2021 --preset wang2021
    wang2021_stage de-allconv-1-match-area --match-area
    wang2021_stage de-allconv-3-long --pixels 3 --region original --generations $((5 * generations))
    result wang2021 success "${made[@]}" "$out"/de-allconv-{1-wang2021,3-long}
    result wang2021-match-area success "$out/de-allconv-1-match-area"
    result wang2021-figures figures --curves common "${made[@]}"
}

targeted() {
    local model made=()
    cifar_masks
    for model in allconv nin vgg16; do
        wang2021_stage de-$model-1-targeted --model $model --targeted --sample "$few"
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
    stage "$name" attack de "$out/cifar-grabcut" --region all --precision bf16 --seed 1 "${search[@]}" "${half[@]}" "$@"
}

# Is the foreground more fragile than the background? One pixel on as many images as wang2021 drew, which tells
# differences of a few points from chance; and every pixel of both regions.
regions() {
    local region maps=()
    stage many-grabcut segment --method grabcut "$cifar/test" --sample "$many" --seed 1
    for region in foreground background; do
        stage many-exhaustive-$region attack exhaustive "$out/many-grabcut" --region $region
        maps+=("$out/many-exhaustive-$region")
    done
    stage many-de-1 attack de "$out/many-grabcut" --region all --precision bf16 --seed 1 "${search[@]}"
    result regions success "${maps[@]}" "$out/many-de-1"
    result regions-exhaustive vulnerability "${maps[@]}" "$out/many-de-1"
}

# Tables III and IV and Fig. 6 of wang2021 at 224×224, saliency masks.
imagenet() {
    photo_masks
    stage photos-de-1 attack de "$out/photos-u2netp" "${network[@]}" --labels "$out/labels.csv" --region all \
        --resize squash --seed 1 --precision bf16 "${search[@]}"
    result imagenet success "$out/photos-de-1"
    result imagenet-figures figures "$out/photos-de-1"
}

# Su et al. 2017: one pixel anywhere, towards each of the nine other classes.
su2017() {
    local model made=()
    for model in allconv nin; do
        stage su2017-$model attack de "$cifar/test" --sample "$images" --seed 1 --model $model --preset su2017 \
            "${search[@]}" --targeted --precision bf16
        made+=("$out/su2017-$model")
    done
    result su2017 success "${made[@]}"
    result su2017-figures figures "${made[@]}"
}

# What is attacked, as NAME and the arguments that say so.
cifar_images() { set_images cifar "$cifar/test" --sample "$images" --seed 1; }
nin_images() { set_images nin "$cifar/test" --sample "$images" --seed 1 --model nin; }
photo_images() { set_images photos "$photos" --limit $photo_count "${network[@]}" --labels "$out/labels.csv"; }
set_images() { set=$1; source=("${@:2}"); }
each_set() {
    if [ -n "$cifar" ]; then cifar_images; "$1"; nin_images; "$1"; fi
    if [ -n "$photos" ]; then photo_images; "$1"; fi
}

# Table 1 of dong2020, and what it varies: δ, superpixel algorithm and size, φ, the gradient of a superpixel.
dong2020() { each_set dong2020_of; }
dong2020_of() {
    local name keep value
    for name in fgm i-fgm mi-fgm sa-fgm sai-fgm m-sai-fgm; do
        stage $set-$name attack $name "${source[@]}"
        stage $set-$name-delta16 attack $name --delta 16 "${source[@]}"
    done
    result $set-dong2020 distortion "$out"/$set-{fgm,i-fgm,mi-fgm,sa-fgm,sai-fgm,m-sai-fgm}
    result $set-dong2020-delta16 distortion "$out"/$set-{fgm,i-fgm,mi-fgm,sa-fgm,sai-fgm,m-sai-fgm}-delta16
    each_of i-fgm delta 1 2 8
    each_of sai-fgm delta 1 2 8
    result $set-delta sweep "$out"/$set-{i-fgm,sai-fgm}{,-delta1,-delta2,-delta8,-delta16} --x delta
    each_of sai-fgm gradient avg max
    result $set-gradient distortion "$out"/$set-sai-fgm{,-gradientavg,-gradientmax}
    each_of sai-fgm superpixels lsc seeds
    result $set-superpixels distortion "$out"/$set-sai-fgm{,-superpixelslsc,-superpixelsseeds}
    each_of sai-fgm size 2 3 8
    result $set-size sweep "$out"/$set-sai-fgm{,-size2,-size3,-size8} --x size
    each_of sai-fgm phi 0 0.1667 0.5 0.6667 0.8333
    result $set-phi sweep "$out"/$set-sai-fgm{,-phi0,-phi0.1667,-phi0.5,-phi0.6667,-phi0.8333} --x phi
    # Figure 2: which half of the noise carries the attack, at δ = 2 as in §3.2.
    stage $set-gradcam-all segment --method gradcam "${source[@]}"
    for keep in foreground background; do
        stage $set-split-$keep attack split "$out/$set-i-fgm-delta2" --keep $keep --halves --masks "$out/$set-gradcam-all"
    done
    result $set-split distortion "$out"/$set-split-{foreground,background}
}

# ATTACK OPTION VALUE…: the attack once for every value of an option.
each_of() {
    local name=$1 option=$2 value
    for value in "${@:3}"; do
        stage "$set-$name-$option$value" attack "$name" "--$option" "$value" "${source[@]}"
    done
}

# Table I of qian2021 and Figs. 3, 9 and 10.
qian2021() { each_set qian2021_of; }
qian2021_of() {
    local value temperature beside=()
    local short=() right=()
    [ "$set" != photos ] || short=(--limit "$few") right=(--labels "$out/labels.csv")
    stage $set-cfr attack cfr "${source[@]}"
    stage $set-pgd attack pgd "${source[@]}"
    stage $set-m-di2-fgsm attack m-di2-fgsm "${source[@]}"
    stage $set-cw attack cw --steps "$steps" "${source[@]}" "${short[@]}"
    stage $set-jsma attack jsma "${source[@]}" "${short[@]}"
    stage $set-adv-patch attack adv-patch --steps "$steps" --early-stop "${source[@]}" "${short[@]}"
    stage $set-lavan attack lavan --steps "$steps" --early-stop "${source[@]}" "${short[@]}"
    if [ "$set" = cifar ]; then few-pixel_stages; beside=("$out/de-same-5"); fi
    result $set-qian2021 distortion "$out"/$set-{cfr,pgd,m-di2-fgsm,cw,jsma,adv-patch,lavan} "${beside[@]}"
    [ "$set" != nin ] || return 0
    for value in 5 10 20 30; do
        for temperature in 0.01 0.1 1 2; do
            stage $set-cfr-$value-$temperature attack cfr --steps $value --temperature $temperature "${source[@]}" \
                "${short[@]}"
        done
    done
    result $set-cfr-steps sweep "$out"/$set-cfr-{5,10,20,30}-{0.01,0.1,1,2} --x steps --y temperature
    for value in 0 0.1 0.2 0.3 0.4; do
        stage $set-cfr-tau$value attack cfr --steps 30 --tau $value "${source[@]}" "${short[@]}"
    done
    result $set-cfr-tau sweep "$out"/$set-cfr-tau{0,0.1,0.2,0.3,0.4} --x tau
    stage $set-gradcam-all segment --method gradcam "${source[@]}"
    result $set-occlusion occlusion "$out/$set-gradcam-all" "${right[@]}"
}

# What was made on one network, given to the others: Fig. 7 of qian2021; Table 1 and Fig. 8 (b) of dong2020.
transfer() {
    local name made=() networks=(--models allconv,nin,vgg16)
    vgg16_images() { set_images vgg16 "$cifar/test" --sample "$images" --seed 1 --model vgg16; }
    for name in cifar nin vgg16; do
        "${name}_images"
        for name in pgd m-di2-fgsm cfr; do
            stage $set-$name attack $name "${source[@]}"
        done
        stage $set-cw attack cw --steps "$steps" "${source[@]}"
        made+=("$out"/$set-{pgd,m-di2-fgsm,cw,cfr})
    done
    result transfer transfer "${made[@]}" "${networks[@]}"
    cifar_images
    for name in fgm i-fgm mi-fgm sa-fgm sai-fgm m-sai-fgm; do
        stage $set-$name-delta16 attack $name --delta 16 "${source[@]}"
    done
    result transfer-dong2020 transfer "$out"/$set-{fgm,i-fgm,mi-fgm,sa-fgm,sai-fgm,m-sai-fgm}-delta16 --over attacked \
        "${networks[@]}"
    stage $set-sai-fgm attack sai-fgm "${source[@]}"
    each_of sai-fgm phi 0 0.1667 0.5 0.6667 0.8333
    result transfer-phi transfer "$out"/$set-sai-fgm{,-phi0,-phi0.1667,-phi0.5,-phi0.6667,-phi0.8333} --over attacked \
        "${networks[@]}"
}

# Figs. 4 to 6 and 8 (a) and Tables 3 and 4 of dong2020.
defences() { each_set defences_of; }
defences_of() {
    local name
    for name in i-fgm sai-fgm; do
        stage $set-$name attack $name "${source[@]}"
        each_of $name delta 8 16
    done
    result $set-robustness robustness "$out"/$set-{i-fgm,sai-fgm} --defense resize:gamma=1.5/2/3 \
        --defense jpeg:q=95/75/55/35/15 --defense dnn-jpeg:q=90/70/50/30 --defense avg-pool:kernel=3/5/7 \
        --defense max-pool:kernel=3/5/7 --defense tvm --defense bit-depth:depth=2/3/4 --defense median:kernel=3/5
    result $set-robustness-delta robustness "$out"/$set-{i-fgm,sai-fgm}-delta{8,16} --defense resize:gamma=1.5/2/3 \
        --defense avg-pool:kernel=3/5/7 --defense max-pool:kernel=3/5/7 --defense tvm
    each_of sai-fgm superpixels lsc seeds
    result $set-robustness-superpixels robustness "$out"/$set-sai-fgm{,-superpixelslsc,-superpixelsseeds} \
        --defense resize:gamma=2 --defense jpeg:q=55 --defense tvm
    each_of sai-fgm size 2 3 8
    result $set-robustness-size robustness "$out"/$set-sai-fgm{,-size2,-size3,-size8} --defense resize:gamma=3
}

# Table 2 of dong2020 and the column of Table 4, with CFR and one pixel beside. All photos take part, those without
# classes too: the label is what the model says. One pixel seldom fools a network at this size, so that its failures
# are learnt from too; so are those of every attack at 32×32.
detection() {
    local delta name made=()
    mkdir -p "$out/detection-photos"
    link_photos "$photos" $photo_count
    [ -z "$more_photos" ] || link_photos "$more_photos" "$more"
    source=("$out/detection-photos" "${network[@]}" --labels predicted)
    for name in fgm i-fgm sai-fgm; do
        detect $name $name
    done
    detect sai-fgm-beta2 sai-fgm --merge-threshold 2
    detect sai-fgm-beta4 sai-fgm --merge-threshold 4
    detect cfr cfr
    stage detection-de-1 attack de --pixels 1 --population 100 --generations 3 "${source[@]}"
    stage detector-de-1 defend detect train "$out/detection-de-1" --attempts
    result detection detection "${made[@]}" "$out/detector-de-1"
    local rich=(--features srm --sample "$srm" $subspace)
    for name in fgm i-fgm sai-fgm sai-fgm-beta2 sai-fgm-beta4 cfr; do
        stage detector-srm-$name defend detect train "$out/detection-$name" "${rich[@]}"
    done
    stage detector-srm-de-1 defend detect train "$out/detection-de-1" --attempts "${rich[@]}"
    result detection-srm detection "$out"/detector-srm-{fgm,i-fgm,sai-fgm,sai-fgm-beta2,sai-fgm-beta4,cfr,de-1}
    [ -z "$cifar" ] || cifar_detection
    for name in lsc seeds; do
        detect sai-fgm-$name sai-fgm --superpixels $name
    done
    for delta in 2 6 8; do
        for name in fgm i-fgm sai-fgm; do
            detect $name-delta$delta $name --delta $delta
        done
        for name in 2 4; do
            detect sai-fgm-beta$name-delta$delta sai-fgm --merge-threshold $name --delta $delta
        done
    done
    result detection-delta detection "${made[@]}"
}

# NAME ATTACK…: an attack on these photos, and a detector of it, which is noted in `made`.
detect() {
    stage "detection-$1" attack "${@:2}" "${source[@]}"
    stage "detector-$1" defend detect train "$out/detection-$1"
    made+=("$out/detector-$1")
}
cifar_detection() {
    local name made=() set source # the photos' are as they were afterwards
    cifar_images
    few-pixel_stages
    for name in fgm i-fgm sai-fgm cfr; do
        stage cifar-$name attack $name "${source[@]}"
    done
    for name in cifar-{fgm,i-fgm,sai-fgm,cfr} de-same-{1,5}; do
        stage detector-$name defend detect train "$out/$name" --attempts
        made+=("$out/detector-$name")
    done
    result cifar-detection detection "${made[@]}"
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
    local name=$1 model=("$cifar/test" --sample "$images" --seed 1 --model "$hardened_model")
    if [ -n "$2" ]; then
        mkdir -p "$out/weights"
        cp "$2" "$out/weights/$name.${2##*.}"
        model+=(--weights "$out/weights/$name.${2##*.}")
    fi
    stage hardened-$name-pgd attack pgd "${model[@]}"
    stage hardened-$name-cw attack cw --steps "$steps" "${model[@]}"
    stage hardened-$name-cfr attack cfr "${model[@]}"
    stage hardened-$name-de-1 attack de --pixels 1 --precision bf16 "${model[@]}" "${search[@]}"
    made+=("$out"/hardened-$name-{pgd,cw,cfr,de-1})
}

# Sparse-RS against differential evolution at the same number of queries, and what transforms leave of these changes.
few-pixel() {
    few-pixel_stages
    result few-pixel success "$out"/{sparse-rs,de-same}-[135]
    result few-pixel-defences robustness "$out"/de-same-[135] --defense resize:gamma=1.5/2 \
        --defense jpeg:q=95/75/55 --defense dnn-jpeg --defense avg-pool:kernel=3 --defense max-pool:kernel=3 \
        --defense median:kernel=3 --defense tvm --defense bit-depth:depth=3/5
}
few-pixel_stages() {
    local pixels same=("$cifar/test" --sample "$images" --seed 1 --precision bf16)
    for pixels in 1 3 5; do
        stage sparse-rs-$pixels attack sparse-rs "${same[@]}" --pixels $pixels --queries "$queries"
        stage de-same-$pixels attack de "${same[@]}" --pixels $pixels --population 100 \
            --generations $((queries / 100))
    done
}

# Every pixel in every corner's colour, and what that explains of searches: as they come, and with colours that end in
# corners.
exhaustive() {
    few-pixel_stages
    stage exhaustive attack exhaustive "$cifar/test" --sample "$images" --seed 1
    stage de-clip-1 attack de "$cifar/test" --sample "$images" --seed 1 --pixels 1 --population 100 \
        --generations $((queries / 100)) --precision bf16 --init su --out-of-range clip
    result exhaustive vulnerability "$out/exhaustive" "$out"/{de-same,de-clip,sparse-rs}-1
}

if [ ${#parts[@]} -eq 0 ]; then
    parts=(masks)
    [ -z "$cifar" ] || parts+=(wang2021 targeted regions su2017)
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
