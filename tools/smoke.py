"""Proves in a fresh environment that an installed nybble works: python -I tools/smoke.py [--device cuda] [--native | --bare]

Prints one line of JSON: versions, which library serves the ops, and the text the demo model writes with temperature 0, which must
be the same in every environment. Needs nothing but what a user installs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings

PROMPT, TOKENS = "The old house at the end of the road", 64


def kernel_error(device: str) -> float:
    """Largest difference of the library's rms_norm to the formula, over numbers that need every vector lane."""
    import torch

    from nybble import ops

    x = torch.linspace(-3, 3, 5 * 67).reshape(5, 67).to(device)
    weight = torch.linspace(0.5, 1.5, 67).to(device)
    wanted = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    return float((ops.rms_norm(x, weight, 1e-6) - wanted).abs().max())


def missing() -> list[str]:
    """What ``nybble doctor`` finds missing."""
    from nybble.cli.doctor import examine

    return [fix["missing"] for fix in examine()["fixes"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--native", action="store_true", help="fail on the PyTorch reference")
    parser.add_argument(
        "--bare", action="store_true", help="fail unless doctor asks for a compiler"
    )
    parser.add_argument("--version", help="fail on another version")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # the reference says that it is slow

    import torch

    import nybble
    from nybble.ops import _native

    state = _native.ensure_loaded()
    error = kernel_error(options.device)
    llm = nybble.LLM("demo", device=options.device)
    text = llm.generate(PROMPT, nybble.SamplingParams(max_tokens=TOKENS, temperature=0)).text
    record = {
        "nybble": nybble.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "device": options.device,
        "library": state.origin,
        "reason": state.reason,
        "cpu": _native.cpu_isa(),
        "cuda_archs": state.info.get("cuda_archs", []),
        "error": error,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "text": text,
    }
    print(json.dumps(record))
    problems = []
    if options.native and state.path is None:
        problems.append(f"the reference serves: {state.reason}")
    if options.bare and "a C++ compiler" not in missing():
        problems.append(f"doctor does not ask for a C++ compiler, only for {missing()}")
    # A wheel's metadata writes 1.0+a-b as 1.0+a.b.
    if options.version and nybble.__version__.replace("-", ".") != options.version.replace(
        "-", "."
    ):
        problems.append(f"version {nybble.__version__}, expected {options.version}")
    if not error < 1e-5:
        problems.append(f"rms_norm is off by {error}")
    if len(text) < TOKENS:
        problems.append(f"the demo wrote only {text!r}")
    for problem in problems:
        print(f"smoke: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
