# muonlab with its command line, on a CPU:
#   docker build -t muonlab .
#   mkdir -p runs && docker run --rm -v "$PWD/runs:/home/muonlab/runs" muonlab train recipes/quickstart.toml --out runs/first
# CUDA (the same commands, with docker run --gpus all):
#   docker build -t muonlab:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .  # the index's own build for Linux is CUDA's
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=lab,hf

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --create-home muonlab && install -d -o muonlab -g muonlab /home/muonlab/runs
WORKDIR /src
COPY constraints.txt .
# torch first, in a layer of its own: it is nine tenths of the image and seldom changes
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "$(grep ^torch== constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt ".[$EXTRAS]"

USER muonlab
WORKDIR /home/muonlab
COPY --chown=muonlab recipes recipes
COPY --chown=muonlab experiments/*.toml experiments/
ENTRYPOINT ["muonlab"]
CMD ["--help"]
