#!/bin/sh
# Resolve every server's dependencies anew, within the versions named in pypi/*.in and */package.json. Needs uv and npm.
set -eu
cd "$(dirname "$0")"

for wanted in pypi/*.in; do
    uv pip compile --quiet --upgrade --universal --python-version 3.13 --generate-hashes --no-annotate --no-header \
        --output-file "${wanted%.in}.lock" "$wanted"
done

for package in npm/*/ readabilipy/; do
    rm -f "$package/package-lock.json"
    # Without addresses in the lock, an install uses the registry its client is set up for.
    npm install --prefix "$package" --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit --no-fund
done
