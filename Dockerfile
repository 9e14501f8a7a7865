# Stage one builds the wheel and an environment of pinned, hashed packages. Stage two contains only that environment:
# no compiler, no pip, no home directory. It writes only to /tmp and the data volume.
FROM python:3.13.9-slim-bookworm AS build
WORKDIR /build
COPY requirements/service.txt requirements/build.txt ./
RUN python -m venv --without-pip /opt/dispatcher \
 && python -m pip --python /opt/dispatcher/bin/python install --no-cache-dir --require-hashes -r service.txt \
 && python -m pip install --no-cache-dir --require-hashes -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY dispatcher dispatcher
COPY channels channels
COPY templates templates
RUN python -m hatchling build -t wheel \
 && python -m pip --python /opt/dispatcher/bin/python install --no-cache-dir --no-deps dist/*.whl

FROM python:3.13.9-slim-bookworm
RUN python -m pip uninstall --yes pip \
 && groupadd --gid 10001 dispatcher \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/lib/dispatcher \
      --shell /usr/sbin/nologin dispatcher \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/dispatcher
COPY --from=build /opt/dispatcher /opt/dispatcher
ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DISPATCHER_CONFIG=/etc/dispatcher/dispatcher.yaml
# Numeric, so that Kubernetes can verify that it is not root.
USER 10001:10001
WORKDIR /var/lib/dispatcher
VOLUME /var/lib/dispatcher
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=40s --retries=3 \
  CMD ["python", "-m", "dispatcher.web.probe"]
ENTRYPOINT ["dispatcher"]
CMD ["serve"]
# Last, because these change with every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="flyte-notification-dispatcher" \
      org.opencontainers.image.description="Delivers Flyte's execution notifications by mail, Slack, PagerDuty, Teams and webhooks" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13.9-slim-bookworm" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
