# A CPU image: docker build -t selfimprove . && docker run --rm -v "$PWD/outputs:/work/outputs" selfimprove run
FROM python:3.11-slim
# bubblewrap: the sandbox for programs of a model (docs/sandbox.md)
RUN apt-get update && apt-get install --yes --no-install-recommends bubblewrap libseccomp2 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
# The usual PyTorch brings CUDA's libraries. Its wheel for CPUs, installed here, makes the image a tenth of the size.
COPY conf conf
COPY selfimprove selfimprove
RUN pip install --no-cache-dir --constraint requirements.lock .
RUN useradd --create-home user && mkdir /work && chown user /work
USER user
WORKDIR /work
ENV OMP_NUM_THREADS=1 WANDB_MODE=offline
ENTRYPOINT ["selfimprove"]
CMD ["run"]
