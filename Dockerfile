# The program is built in the first stage, its hot path compiled: wheels, then an environment from nothing but those.
# Every package is one that requirements/ names by its hash, those that build it too (`make lock`).
# The second stage has that environment and no compiler, pip cache or source tree.
ARG PYTHON=3.13

FROM python:${PYTHON} AS build
ENV HATCH_BUILD_HOOK_ENABLE_MYPYC=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements ./requirements
RUN pip install --require-hashes --requirement requirements/build.txt \
    && pip wheel --require-hashes --no-deps --wheel-dir /wheels --requirement requirements/image.txt
COPY fedproxy ./fedproxy
RUN pip wheel --no-build-isolation --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/fedproxy \
    && pip --python /opt/fedproxy/bin/python install --no-index --find-links /wheels 'fedproxy[otel,redis]' \
    && cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible --output-file /opt/fedproxy/sbom.cdx.json /opt/fedproxy \
    && install -d -o 65532 -g 65532 -m 0700 /state

FROM python:${PYTHON}-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="fedproxy" \
      org.opencontainers.image.description="The edge for a federation of BinderHubs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="BSD-3-Clause AND MIT"
COPY --from=build /opt/fedproxy /opt/fedproxy
# What operators set at run time is kept here: a volume, if it is to outlive the container.
COPY --from=build --chown=65532:65532 /state /var/lib/fedproxy
# pip compiled the bytecode; nothing else is written but the state, so the root may be read-only.
ENV PATH=/opt/fedproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    STATE_DIRECTORY=/var/lib/fedproxy
# A number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 65532:65532
WORKDIR /
EXPOSE 8080 8081
# Drains, then exits; whatever stops the container has to wait longer than timeouts.drain.
STOPSIGNAL SIGTERM
# Asked directly, whatever http_proxy says.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(os.environ.get('FEDPROXY_ADMIN', 'http://127.0.0.1:8081').rstrip('/') + '/health/live', timeout=3)"]
# As the first process it waits for those that lost their parent, so no init is needed in front of it.
ENTRYPOINT ["fedproxy"]
# The config is /etc/fedproxy/config.yaml, or /etc/federation-redirect/config.json.
CMD ["serve"]
