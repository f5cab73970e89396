#!/bin/sh
# The whole recipe, to a model folder: sh nano/run.sh PROFILE [RUN_FOLDER] [OUTPUT_FOLDER]
# PROFILE is tiny (a rehearsal, a minute), cpu (a small world), gpu (a wide one), all three from nothing, or onward, which
# goes on from the model folder START (the embedded one unless it is set); see nano/config.py.
# Every step goes on from its checkpoint, so that the same command resumes an interrupted run.
set -eu
profile=${1:?usage: sh nano/run.sh tiny|cpu|gpu|onward [RUN_FOLDER] [OUTPUT_FOLDER]}
folder=${2:-nano-run-$profile}
output=${3:-$folder/model}
python=${PYTHON:-python}

if [ "$profile" = onward ]; then
    $python -m nano.adopt --profile "$profile" --folder "$folder" --model "${START:-zturbo/embedded/nano}"
else
    $python -m nano.tokenizer --profile "$profile" --folder "$folder"
    $python -m nano.vae --profile "$profile" --folder "$folder"
fi
$python -m nano.language --profile "$profile" --folder "$folder"
$python -m nano.latents --profile "$profile" --folder "$folder"
$python -m nano.transformer --profile "$profile" --folder "$folder"
$python -m nano.distill --profile "$profile" --folder "$folder"
$python -m nano.decoder --profile "$profile" --folder "$folder"
$python -m nano.export --profile "$profile" --folder "$folder" --output "$output" --card nano/card.md
$python -m nano.evaluate --profile "$profile" --folder "$folder" --output "$folder/figures"
