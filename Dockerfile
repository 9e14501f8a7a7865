# Stage one builds the wheel and installs it with its pinned dependencies; stage two holds nothing else.
FROM python:3.13.9-slim-bookworm AS build
WORKDIR /build
COPY requirements/service.txt requirements/build.txt ./
RUN python -m venv /opt/dispatcher \
 && /opt/dispatcher/bin/pip install --no-cache-dir --require-hashes -r service.txt \
 && python -m pip install --no-cache-dir --require-hashes -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY dispatcher dispatcher
COPY channels channels
COPY templates templates
RUN python -m hatchling build -t wheel \
 && /opt/dispatcher/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM python:3.13.9-slim-bookworm
LABEL org.opencontainers.image.title="flyte-notification-dispatcher" \
      org.opencontainers.image.description="Delivers Flyte's execution notifications by mail, Slack and PagerDuty" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --home-dir /var/lib/dispatcher --create-home dispatcher
COPY --from=build /opt/dispatcher /opt/dispatcher
ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DISPATCHER_CONFIG=/etc/dispatcher/dispatcher.yaml
USER 10001
WORKDIR /var/lib/dispatcher
VOLUME /var/lib/dispatcher
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
ENTRYPOINT ["dispatcher"]
CMD ["serve"]
