#!/bin/bash
#SBATCH --job-name=pixelsem
#SBATCH --array=1-16
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --output=pixelsem-%A_%a.log
#
# One shard of N (16) per job of the array; the masks must be there already, as one stage. Then the parts are joined:
#
#   masks=$(pixelsem segment --run results --method grabcut photos)
#   job=$(sbatch --parsable --export=ALL,MASKS="$masks",RUN=results slurm-array.sh)
#   sbatch --dependency=afterok:"$job" --wrap='pixelsem stage merge results/attack-joined results/attack-de-all-*-shard*'
#
# Jobs that failed or ran out of time are submitted again, as `sbatch --array=3,7 …`: each goes on where it was. N is
# given by itself, as Slurm's own count of tasks would then be 2.
set -euo pipefail

exec pixelsem attack de --run "${RUN:-pixelsem-run}" --region all --device auto \
    --shard "${SLURM_ARRAY_TASK_ID:?run me with sbatch}/${N:-16}" "$@" "${MASKS:?a segmentation stage}"
