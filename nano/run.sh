#!/bin/sh
# The whole recipe, to a model folder: sh nano/run.sh PROFILE [RUN_FOLDER] [OUTPUT_FOLDER]
# PROFILE is tiny (a rehearsal, a minute), cpu (a small world), gpu (a wide one), all three from nothing, or onward, which
# goes on from the model folder START (the embedded one unless it is set); see nano/config.py.
# Every step goes on from its checkpoint, so that the same command resumes an interrupted run. SEED, where it is set, makes
# other pictures, words and noise than the profile's: for a run that goes on from one of the same recipe.
set -eu
profile=${1:?usage: sh nano/run.sh tiny|cpu|gpu|onward [RUN_FOLDER] [OUTPUT_FOLDER]}
folder=${2:-nano-run-$profile}
output=${3:-$folder/model}
python=${PYTHON:-python}
seed=${SEED:+--seed $SEED}

if [ "$profile" = onward ]; then
    $python -m nano.adopt $seed --profile "$profile" --folder "$folder" --model "${START:-zturbo/embedded/nano}"
else
    $python -m nano.tokenizer $seed --profile "$profile" --folder "$folder"
    $python -m nano.vae $seed --profile "$profile" --folder "$folder"
fi
$python -m nano.language $seed --profile "$profile" --folder "$folder"
$python -m nano.latents $seed --profile "$profile" --folder "$folder"
$python -m nano.transformer $seed --profile "$profile" --folder "$folder"
$python -m nano.distill $seed --profile "$profile" --folder "$folder"
$python -m nano.decoder $seed --profile "$profile" --folder "$folder"
$python -m nano.export --profile "$profile" --folder "$folder" --output "$output"
$python -m nano.evaluate --profile "$profile" --folder "$folder" --output "$folder/figures"
