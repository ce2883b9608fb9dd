# The server alone, for any workspace. Build: docker build -t agent-server .
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /opt/agent-server \
 && /opt/agent-server/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY agent_server ./agent_server
COPY tools ./tools
COPY integrations ./integrations
# Compiled here: without it each start of a new container would compile everything again.
RUN /opt/agent-server/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
 && /opt/agent-server/bin/python -m compileall -q /opt/agent-server/lib

FROM python:3.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends bash bash-static ca-certificates git procps \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 agent \
 && install -d -o agent -g agent /workspace \
 && install -d -o agent -g agent -m 700 /var/lib/agent-server
# Its bin folder is not on PATH: commands of the agent are to find the image's own Python, not the server's.
COPY --from=build /opt/agent-server /opt/agent-server
USER agent
WORKDIR /workspace
ENV WORKSPACE_DIR=/workspace DATA_DIR=/var/lib/agent-server PORT=3000
VOLUME ["/workspace", "/var/lib/agent-server"]
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["/opt/agent-server/bin/python", "-I", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=2)"]
ENTRYPOINT ["/opt/agent-server/bin/agent-server"]
CMD ["serve"]
