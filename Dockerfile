# The control plane, for those who prefer it in a container; see compose.yaml.
ARG FROM_IMAGE=python:3.13-slim-trixie
FROM ${FROM_IMAGE}

WORKDIR /srv/sandgate
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY app app
COPY catalog catalog
COPY sandbox_images sandbox_images
RUN .venv/bin/pip install --no-cache-dir --no-deps -e .

ENV SANDGATE_HOME=/var/lib/sandgate
CMD [".venv/bin/sandgate", "serve", "--setup"]
