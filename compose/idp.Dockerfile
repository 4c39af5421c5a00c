# A development identity provider: anybody may sign in as anybody. Never for production.
ARG BASE=python:3.13-slim-bookworm
FROM ${BASE} AS build
COPY uv /usr/local/bin/uv
COPY requirements.lock /context/
COPY wheels /context/wheels
RUN uv venv --quiet --python "$(command -v python3)" --no-managed-python /opt/idp \
 && uv pip install --quiet --python /opt/idp/bin/python --offline --no-index --no-cache \
      --find-links /context/wheels --require-hashes --compile-bytecode -r /context/requirements.lock

FROM ${BASE}
COPY --from=build /opt/idp /opt/idp
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
USER 65532:65532
EXPOSE 9400
HEALTHCHECK --interval=5s --timeout=5s --retries=10 CMD ["/opt/idp/bin/python", "-c", \
  "import urllib.request as u; u.urlopen('http://127.0.0.1:9400/.well-known/openid-configuration', timeout=4)"]
ENTRYPOINT ["/opt/idp/bin/python", "-m", "oidc_provider_mock", "--host", "0.0.0.0", "--port", "9400"]
CMD ["--user-claims", "{\"sub\": \"ada\", \"email\": \"ada@example.com\", \"name\": \"Ada\"}", \
     "--user-claims", "{\"sub\": \"grace\", \"email\": \"grace@example.com\", \"name\": \"Grace\"}", \
     "--user-claims", "{\"sub\": \"mallory\", \"email\": \"mallory@elsewhere.test\", \"name\": \"Mallory\"}"]
