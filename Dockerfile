# Wheels are built in the first stage and installed in the second, so that the image has no compiler and no cache.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS wheels
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY fedproxy ./fedproxy
RUN pip wheel --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="fedproxy" \
      org.opencontainers.image.description="The edge for a federation of BinderHubs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="BSD-3-Clause"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m venv /opt/fedproxy \
    && /opt/fedproxy/bin/pip install --no-index --find-links /wheels fedproxy
# Bytecode was compiled by pip just now; from here on nothing is written, so the root may be read-only.
ENV PATH=/opt/fedproxy/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# A number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 65532:65532
WORKDIR /
EXPOSE 8080 8081
# Asked directly, whatever http_proxy says.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(os.environ.get('FEDPROXY_ADMIN', 'http://127.0.0.1:8081').rstrip('/') + '/health/live', timeout=3)"]
ENTRYPOINT ["fedproxy"]
CMD ["serve", "--config", "/etc/fedproxy/config.yaml"]
