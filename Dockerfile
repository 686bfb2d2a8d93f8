# mmrr serve as a user without rights. docs/http.md says how to build it for CPUs and for CUDA.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# Debian keeps one version of a package, so that pinned ones would soon be gone.
# hadolint ignore=DL3008,SC2046
RUN apt-get update \
    && apt-get install --yes --no-install-recommends poppler-utils \
        $(command -v python3 >/dev/null || echo python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 mmrr \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin mmrr \
    && mkdir -p /work /models \
    && chown mmrr:mmrr /work /models

# torch first: its layer stays when the source changes.
COPY constraints.txt /tmp/constraints.txt
RUN python3 -m venv /opt/mmrr \
    && /opt/mmrr/bin/pip install --index-url "${TORCH_INDEX}" \
        "$(grep '^torch==' /tmp/constraints.txt)"

COPY pyproject.toml README.md LICENSE /src/
COPY mmrr /src/mmrr
COPY cli /src/cli
RUN /opt/mmrr/bin/pip install --constraint /tmp/constraints.txt "/src[serve,ocr,text]"

ENV PATH=/opt/mmrr/bin:${PATH} \
    HF_HOME=/models

USER 10001:10001
WORKDIR /work
VOLUME ["/work", "/models"]
EXPOSE 8000

HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

ENTRYPOINT ["mmrr"]
# A container is reached from outside, so the server asks for the API key in MMRR_API_KEY.
CMD ["serve", "--work", "/work", "--host", "0.0.0.0", "--port", "8000"]
