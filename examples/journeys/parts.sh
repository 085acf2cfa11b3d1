#!/usr/bin/env bash
# A folder of photographs of a surface: judged, mapped, explained and reported, from the command line alone.
# Usage: examples/journeys/parts.sh [FOLDER_WITH_skjepa]; writes into the folder journey-output.
set -euo pipefail
bin=$(cd "${1:-.venv/bin}" && pwd)
export PATH="$bin:$PATH"
test -d demo-output/images || skjepa demo --out demo-output > /dev/null
images=$PWD/demo-output/images
mkdir -p journey-output
cd journey-output
step() { printf '\n\n--- %s (after %s s)\n' "$1" "$SECONDS"; }

step "Which of the new images are odd, and where?"
skjepa score --normal "$images/fit" "$images/coins" --local --maps maps --out scores.csv --yes
test -s maps/spots.json

step "Why is this one odd?"
skjepa fit "$images/fit" --out detector --yes
skjepa explain "$images/coins/000.png" "$images/gravel/000.png" --detector detector

step "The saved detector, on other images"
skjepa score --detector detector "$images/bricks" --out bricks.parquet --yes

step "A page to look at"
skjepa report scores.csv --images "$images/coins" --normal "$images/fit"
test -s scores.html
step "Done"
