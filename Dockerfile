# The server. Build: docker build -t he-serve .   Run: docker run -p 8000:8000 -v "$PWD/deployed:/models:ro" -v he-serve-keys:/state he-serve
FROM python:3.12-slim AS build

# A compiler for the C++ kernels; CMake and the other build tools come from PyPI. Debian drops old versions, so a pinned one breaks builds.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY . .

# TenSEAL belongs to the client: without it nothing in the image can make or use a secret key.
RUN python -m venv /opt/he-serve \
    && /opt/he-serve/bin/pip install --no-cache-dir '.[server]' \
    && /opt/he-serve/bin/pip uninstall --yes tenseal

FROM python:3.12-slim

COPY --from=build /opt/he-serve /opt/he-serve
ENV PATH=/opt/he-serve/bin:$PATH

# /models holds compiled models (*.hem), /state the clients' evaluation keys.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin he-serve \
    && install --directory --owner=he-serve --mode=0700 /state \
    && install --directory /models
USER 10001
WORKDIR /state
VOLUME ["/state"]
EXPOSE 8000

HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/live', timeout=4)"]

# More options follow the image's name: docker run ... he-serve --workers 2 --threads 4
ENTRYPOINT ["he-serve", "serve", "--models", "/models", "--state", "/state", "--host", "0.0.0.0"]
