#!/usr/bin/env bash
# A folder of photographs of a surface: judged, mapped, explained and reported, from the command line alone.
# Usage: examples/journeys/parts.sh FOLDER_WITH_skjepa; works in the present directory.
set -euo pipefail
skjepa() { "$1/skjepa" "${@:2}"; }
BIN=$(cd "${1:-.venv/bin}" && pwd)

echo "--- images: gravel, and gravel with something in it (from the demo)"
skjepa "$BIN" demo --out demo-output > /dev/null
normal=demo-output/images/fit incoming=demo-output/images/coins

echo "--- which of the new images are odd, and where?"
skjepa "$BIN" score --fit "$normal" "$incoming" --local --maps maps --out scores.csv
test -s maps/spots.json

echo "--- once fitted, saved: judge without the normal images"
skjepa "$BIN" fit "$normal" --local --out detector
skjepa "$BIN" score --detector detector demo-output/images/bricks --out bricks.parquet

echo "--- why is this one odd?"
skjepa "$BIN" explain "$incoming/000.png" --detector detector

echo "--- a page to look at"
skjepa "$BIN" report scores.csv --normal "$normal"
test -s scores.html
