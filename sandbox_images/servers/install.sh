#!/bin/sh
# Install each MCP server into an environment of its own, /opt/mcp/<name>, exactly as locked:
#   pypi/<name>.lock  -> /opt/mcp/<name>/bin/<command>
#   npm/<name>/       -> /opt/mcp/<name>/node_modules/.bin/<command>
# A server runs under an arbitrary user id that cannot write here, so byte code is compiled now.
set -eu
cd "$(dirname "$0")"
export UV_CACHE_DIR=/tmp/uv-cache NPM_CONFIG_CACHE=/tmp/npm-cache NODE_DISABLE_COMPILE_CACHE=1

for lock in pypi/*.lock; do
    environment=/opt/mcp/$(basename "$lock" .lock)
    uv venv --quiet --python /usr/bin/python3 "$environment"
    uv pip install --quiet --require-hashes --python "$environment/bin/python" -r "$lock"
    # The path is left out so that a module has the same byte code in each environment; Python puts it back on import.
    # Unchecked: nobody edits these files, so no start has to compare them with their sources.
    python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$environment" "$environment/lib"
done

for package in npm/*/; do
    environment=/opt/mcp/$(basename "$package")
    mkdir -p "$environment"
    cp "$package"/package*.json "$environment"
    npm ci --prefix "$environment" --omit=dev --ignore-scripts --no-audit --loglevel=error
done

# The fetch server extracts articles with Readability.js through readabilipy, which would otherwise run `npm install` in
# its own folder at the first call.
readabilipy=/opt/mcp/fetch/lib/python3.13/site-packages/readabilipy/javascript
cp readabilipy/package*.json "$readabilipy"
npm ci --prefix "$readabilipy" --omit=dev --ignore-scripts --no-audit --loglevel=error

# Node loads no TypeScript from node_modules, and nobody debugs there.
find /opt/mcp -path '*/node_modules/*' -type f \( -name '*.map' -o -name '*.ts' -o -name '*.mts' -o -name '*.cts' \) -delete
# The environments share most of their libraries: one copy of each file is enough.
hardlink --quiet --ignore-time /opt/mcp
# uv's locks are world-writable, and no server may leave anything for another.
rm -f /opt/mcp/*/.lock
rm -rf "$UV_CACHE_DIR" "$NPM_CONFIG_CACHE"
