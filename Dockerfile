# The light install: fmcae predict, verify, evaluate, bench and doctor, without torch. docs/deploy.md has how to use it.
FROM python:3.12-slim-bookworm AS build
COPY . /fmcae
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /fmcae

FROM python:3.12-slim-bookworm
ARG EXTRAS=""
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-cache-dir "$(ls /wheels/*.whl)${EXTRAS:+[$EXTRAS]}"
RUN useradd --create-home fmcae
USER fmcae
WORKDIR /data
ENTRYPOINT ["fmcae"]
CMD ["--help"]
