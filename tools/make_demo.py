"""Make ``nybble/demo`` again from the full-precision checkpoint: ``python tools/make_demo.py CHECKPOINT``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nybble.quantize.job import Settings, quantize_rtn

DEMO = Path(__file__).resolve().parents[1] / "nybble" / "demo"
SETTINGS = Settings(bits=4.1, head_bits=6, group_size=64)
# The text starts with token 0, which tokenizer.json alone does not say.
TOKENIZER = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|pad|>",
    "add_bos_token": True,
}


def main() -> None:
    """Quantize into the package, keeping the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of the bf16 checkpoint")
    parser.add_argument("--output", type=Path, default=DEMO, help="folder to make")
    options = parser.parse_args()
    card = DEMO / "MODEL_CARD.md"
    text = card.read_text(encoding="utf-8")
    report = quantize_rtn(options.checkpoint, options.output, SETTINGS, force=True)
    (options.output / card.name).write_text(text, encoding="utf-8")
    (options.output / "tokenizer_config.json").write_text(json.dumps(TOKENIZER, indent=1) + "\n")
    print(f"{options.output}: {report.bits:.3f} bits a weight, {report.bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
