# nybble with its CUDA part, made for the GPUs in ARCHS:
#   docker build -t nybble --build-arg ARCHS="8.6 8.9" .
#   docker run --rm -it --gpus all nybble chat
# Code made with CUDA 12.8 runs under drivers from 525 on (docs/install.md).
FROM nvidia/cuda:12.8.1-devel-ubuntu22.04 AS build
ARG ARCHS="6.0 7.0 7.5 8.0 8.6 8.9 9.0a 10.0 12.0+PTX"
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-pip python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /build && /build/bin/pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
RUN /build/bin/pip install --no-cache-dir "cmake>=3.24" ninja "scikit-build-core>=0.10"
COPY . /nybble
# The library needs torch's headers only, so the CPU build of torch will do here. "on": no wheel without the CUDA part.
RUN cd /nybble && PATH=/build/bin:$PATH NYBBLE_CUDA=on TORCH_CUDA_ARCH_LIST="$ARCHS" \
    /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . && ls /wheels | grep -v -- -any.whl

FROM python:3.12-slim-bookworm
# torch first: its layer is large and changes seldom.
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cu128
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -r /wheels
RUN useradd --create-home nybble
USER nybble
WORKDIR /home/nybble
ENTRYPOINT ["nybble"]
CMD ["doctor"]
