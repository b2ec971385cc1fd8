"""The old sampling functions: recorded calls, rules that the records do not cover, and calls that no program should make."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nybble.compat import exllamav2_ext as ext
from nybble.compat.exl2.sampling import _draws
from tests.cases.sampling import plain_penalty

ROOT = Path(__file__).resolve().parents[2]
NONE = torch.empty((1, 1), device="meta")


@pytest.mark.parametrize("reference", ["", "1"])
def test_recorded_calls(data: Path, reference: str) -> None:
    golden = data / "golden"
    done = subprocess.run(
        [sys.executable, golden / "replay.py", golden / "ext", "--family", "sampling", "--path", ROOT, "-v"],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"NYBBLE_FORCE_REFERENCE": reference},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    passed, failed = map(int, done.stdout.splitlines()[-1].split()[1:])
    assert (passed, failed) == (275, 0)


class Call:
    """Arguments of ``sample_basic`` where nothing is on, and its outputs."""

    def __init__(self, rows: Tensor, K: int = 0, **changed: Any) -> None:
        B = rows.shape[0]
        self.tokens, self.probs = torch.full((B, 1), -7), torch.full((B, 1), math.nan)
        self.k_probs = torch.full((B, 1, K), math.nan) if K else NONE
        self.k_tokens = torch.full((B, 1, K), -7) if K else NONE
        self.arguments: dict[str, Any] = {
            "logits": rows, "temperature": 1.0, "top_k": 0, "top_p": 0.0, "top_a": 0.0, "min_p": 0.0, "tfs": 0.0,
            "typical": 0.0, "random": 0.5, "output_tokens": self.tokens, "output_probs": self.probs,
            "output_kprobs": self.k_probs, "output_ktokens": self.k_tokens, "logit_filter": NONE, "mirostat": False,
            "mirostat_mu": [], "mirostat_tau": 1.5, "mirostat_eta": 0.1, "post_temperature": 1.0, "xtc_mask": NONE,
            "xtc_probability": 0.0, "xtc_threshold": 0.1, "min_temp": 0.0, "max_temp": 0.0, "temp_exponent": 1.0,
            "smoothing_factor": 0.0, "skew": 0.0,
        }  # fmt: skip
        assert changed.keys() <= self.arguments.keys()
        self.arguments |= changed

    def run(self) -> list[float]:
        return ext.sample_basic(*self.arguments.values())


def test_smoothing_of_a_row_does_not_depend_on_the_rows_before_it() -> None:
    """The temperature was divided by the factor once more for every row."""
    logits = torch.randn(3, 1, 64) * 4
    together = Call(logits, K=8, smoothing_factor=0.3)
    together.run()
    for b in range(3):
        alone = Call(logits[b : b + 1], K=8, smoothing_factor=0.3)
        alone.run()
        assert torch.equal(alone.k_tokens[0], together.k_tokens[b])
        assert torch.equal(alone.k_probs[0], together.k_probs[b])


@pytest.mark.parametrize("setting", [{"min_p": 1e-6}, {"top_a": 1e-6}])
def test_a_threshold_that_all_pass_adds_no_candidate(setting: dict[str, float]) -> None:
    """One more than there were came out, with what lay behind the last."""
    call = Call(torch.linspace(0, 3, 32)[None, None], K=20, top_k=16, **setting)
    call.run()
    assert sorted(call.k_tokens[0, 0, :16].tolist()) == list(range(16, 32))
    assert call.k_probs[0, 0, 16:].tolist() == [0.0] * 4
    assert call.k_tokens[0, 0, 16:].tolist() == [0, 1, 2, 3]


def test_a_vocabulary_of_any_width() -> None:
    """Widths that are no multiple of 32 were read and written past their end."""
    call = Call(torch.arange(37.0)[None, None], temperature=0.0)
    call.run()
    assert call.tokens.item() == 36 and call.probs.item() == 1


def test_temperatures_under_a_hundredth_are_greedy() -> None:
    logits = torch.tensor([[[0.0, 0.001, 0.002]]])
    greedy, warm = Call(logits, temperature=0.0099), Call(logits, temperature=0.0101)
    greedy.run()
    warm.run()
    assert greedy.tokens.item() == 2 and greedy.probs.item() == 1 and warm.probs.item() < 1


def test_temperature_0_at_the_end_is_greedy() -> None:
    """It gave NaN."""
    call = Call(torch.tensor([[[0.0, 2.0, 1.0]]]), top_k=3, post_temperature=0.0, random=0.99)
    call.run()
    assert call.tokens.item() == 1 and call.probs.item() == 1


def test_top_a_above_1_keeps_the_largest() -> None:
    """It could leave no candidate at all."""
    call = Call(torch.tensor([[[0.0, 2.0, 1.0]]]), top_a=50.0, random=0.99)
    call.run()
    assert call.tokens.item() == 1


def test_a_row_without_a_choice_is_an_error() -> None:
    for logits in (torch.full((1, 1, 8), math.nan), torch.full((1, 1, 8), -math.inf)):
        with pytest.raises(RuntimeError, match="no token to choose"):
            Call(logits).run()
    with pytest.raises(RuntimeError, match="no token to choose"):
        Call(torch.zeros(1, 1, 8), logit_filter=torch.zeros(1, 8, dtype=torch.bool)).run()


def test_histogram_of_draws() -> None:
    logits = torch.randn(1, 1, 12)
    expected = logits.flatten().double().softmax(0)
    counts = torch.zeros(12, dtype=torch.float64)
    n = 2000
    for i in range(n):
        call = Call(logits, random=(i + 0.5) / n)
        call.run()
        counts[call.tokens.item()] += 1
    # Evenly spread draws miss a share by one draw at each of its ends; 0.9998 moves the ends by less.
    assert ((counts / n - expected).abs() <= 2.5 / n).all()


def test_random_numbers_of_further_rows() -> None:
    assert _draws(0.370000005, 4) == pytest.approx(
        [0.370000005, 0.27472496, 0.880542755, 0.438220978], abs=5e-8
    )


def test_penalty_is_a_walk_backwards() -> None:
    for sustain, decay in ((-1, 0), (0, 0), (0, 3), (4, 0), (4, 7), (100, 5)):
        logits, ids = torch.randn(2, 1, 9), torch.randint(-2, 12, (2, 20))
        inside = ids.where((ids >= 0) & (ids < 9), -1)
        expected = [
            plain_penalty(logits[b, 0], inside[b].tolist(), 1.3, 0.25, 0.5, sustain, decay)
            for b in range(2)
        ]
        ext.apply_rep_penalty(ids, 1.3, sustain, decay, 0.25, 0.5, logits)
        torch.testing.assert_close(
            logits[:, 0].double(), torch.stack(expected), rtol=1e-5, atol=1e-5
        )


def test_filter_takes_any_order_and_ids_beyond_the_row() -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 2] = False
    ext.logit_filter_exclusive(mask, [[5, 2, 2, 1, 99, -1], [0]])
    assert mask.tolist() == [[i in (1, 5) for i in range(6)], [i == 0 for i in range(6)]]


def match(text: str, *strings: str) -> int:
    pieces = [s.encode("utf-32-le") for s in strings]
    ends = np.cumsum([0, *map(len, pieces)]).astype(np.int32)
    return ext.partial_strings_match(
        np.frombuffer(text.encode("utf-32-le"), np.uint8),
        ends.view(np.uint8),
        np.frombuffer(b"".join(pieces), np.uint8),
    )


def plain_match(text: str, *strings: str) -> int:
    for s in strings:
        for a in range(len(text)):
            rest = text[a:]
            if rest.startswith(s):
                return a
            if s.startswith(rest):
                return -2
    return -1


def test_strings_match_as_character_by_character() -> None:
    alphabet = "ab\U0001f600"
    words = ["".join(alphabet[i] for i in row) for row in torch.randint(0, 3, (120, 4)).tolist()]
    for i in range(0, 120, 4):
        text = "".join(words[i : i + 2])
        wanted = [words[i + 2][: 1 + i % 4], words[i + 3]]
        assert match(text, *wanted) == plain_match(text, *wanted), (text, wanted)
    assert match("", "a") == -1 and match("a") == -1
    # A first string that may still come hides a second one that is there.
    assert match("xaby", "yz", "ab") == -2 and match("xaby", "ab", "yz") == 1


def hostile_calls() -> list[tuple[str, tuple[Any, ...]]]:
    """Function and arguments, each with one thing wrong."""
    f, mask = torch.zeros(2, 1, 8), torch.ones(2, 8, dtype=torch.bool)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    raw = np.zeros(8, np.uint8)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("apply_rep_penalty", (ids, 1.1, -1, 0, 0.0, 0.0, f)[:at] + (bad,) + (ids, 1.1, -1, 0, 0.0, 0.0, f)[at + 1 :])
        for at, wrongs in enumerate([
            (ids.int(), ids[:1], ids[0], NONE, None, [[1]]),
            ("1", None, 0.0, -1.0, math.nan, True),
            (1.5, None, -2, 1 << 70),
            (1.5, None, -1),
            ("x", math.nan),
            (None, math.nan),
            (f.half(), f[:1], f.expand(2, 3, 8), f.transpose(0, 2), f[0, 0], NONE, torch.zeros(2, 4, 8), None),
        ])
        for bad in wrongs
    ]  # fmt: skip
    calls += [
        ("logit_filter_exclusive", (mask.int(), [[1], [2]])),
        ("logit_filter_exclusive", (mask, [[1]])),
        ("logit_filter_exclusive", (mask, [[1], []])),
        ("logit_filter_exclusive", (mask, [[1], [1.5]])),
        ("logit_filter_exclusive", (mask, [[1], [1 << 70]])),
        ("logit_filter_exclusive", (mask, [[1], ["a"]])),
        ("logit_filter_exclusive", (mask, [[1], 3])),
        ("logit_filter_exclusive", (mask, None)),
        ("logit_filter_exclusive", (mask[0], [[1]] * 8)),
        ("logit_filter_exclusive", (NONE, [[1]])),
        ("fast_fill_cpu_ones_bool", (f,)),
        ("fast_fill_cpu_ones_bool", (NONE,)),
        ("fast_fill_cpu_ones_bool", (None,)),
        ("fast_fadd_cpu", (f, f.half())),
        ("fast_fadd_cpu", (f.half(), f)),
        ("fast_fadd_cpu", (f, f[:0])),
        ("fast_fadd_cpu", (f, torch.zeros(3))),
        ("fast_fadd_cpu", (torch.zeros(1, 8).expand(2, 8), torch.zeros(8))),
        ("fast_fadd_cpu", (f, NONE)),
        ("fast_copy_cpu", (f, f.half())),
        ("fast_copy_cpu", (f, f[:1])),
        ("fast_copy_cpu", (torch.zeros(1).expand(4), torch.zeros(4))),
        ("fast_copy_cpu", (torch.zeros(1, 1), NONE)),
        ("fast_copy_cpu", (NONE, torch.zeros(1, 1))),
        ("fast_copy_cpu", (f, None)),
        ("dump_profile_results", (1,)),
        ("set_flash_attn_func", (None,)),
        ("partial_strings_match", (None, raw, raw)),
        ("partial_strings_match", ("text", raw, raw)),
        ("partial_strings_match", (raw, np.array([0, 99], np.int32).view(np.uint8), raw)),
        ("partial_strings_match", (raw, np.array([0, 0], np.int32).view(np.uint8), raw)),
        ("partial_strings_match", (raw, np.array([0, 3], np.int32).view(np.uint8), raw)),
        ("partial_strings_match", (raw, np.array([-4, 4], np.int32).view(np.uint8), raw)),
        ("partial_strings_match", (raw, np.array([0, 4], np.int32), raw)),
        ("partial_strings_match", (raw + 255, np.array([0, 4], np.int32).view(np.uint8), raw)),
        ("sample_basic", ()),
        ("sample_basic", (f,)),
    ]  # fmt: skip
    on = {"mirostat": True, "mirostat_mu": [0.0, 0.0], "top_k": 5, "xtc_probability": 0.5, "top_a": 0.1,
          "xtc_mask": mask[0], "max_temp": 1.0, "logit_filter": mask}  # fmt: skip
    wrong: dict[str, tuple[Any, ...]] = {
        "logits": (f.half(), f[:1], f[0, 0], f[..., :0], f.expand(2, 3, 8), f.transpose(0, 2), NONE, None, f * math.nan),
        "temperature": (None, "1", math.nan, True),
        "top_k": (1.5, None, "5"),
        "top_p": (None,), "min_p": ("0",), "tfs": ([],), "typical": ({},),
        "top_a": (math.inf, None)[1:],
        "random": (1.01, -0.1, math.nan, None),
        "output_tokens": (ids, f.int(), NONE, None, torch.zeros(2, 2, dtype=torch.int64)[:, 0]),
        "output_probs": (ids, torch.zeros(3, 1), NONE, None),
        "output_kprobs": (torch.zeros(2, 1, 4), torch.zeros(2, 4), ids, None),
        "output_ktokens": (torch.zeros(2, 1, 4), None),
        "logit_filter": (mask[:1], mask.int(), mask[:, :4], ~mask, None),
        "mirostat": (1, None),
        "mirostat_mu": ([0.0], [], [0.0, "x"], None, [0.0, math.nan]),
        "mirostat_tau": (None,), "mirostat_eta": ("x",),
        "xtc_mask": (mask, NONE, mask[0].int(), mask[0, :4], None),
        "xtc_probability": (1.5, None),
        "xtc_threshold": (-1.0, math.nan, None),
        "min_temp": (-1.0, None), "max_temp": (math.inf, None), "temp_exponent": (-1.0, math.nan, None),
        "smoothing_factor": (None,), "skew": (None, "x", -1e4),
        "post_temperature": (None,),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            call = Call(f.clone(), K=4 if name == "output_ktokens" else 0, **on | {name: value})
            calls.append(("sample_basic", tuple(call.arguments.values())))
    calls.append(("sample_basic", tuple(Call(f, post_temperature=-1.0).arguments.values())))
    calls.append(("sample_basic", tuple(Call(f, K=9).arguments.values())))
    return calls


def test_sound_arguments_of_the_hostile_calls_are_sound() -> None:
    """Otherwise every one of those calls would fail for the same reason."""
    f, mask = torch.randn(2, 1, 8), torch.ones(2, 8, dtype=torch.bool)
    call = Call(f, mirostat=True, mirostat_mu=[0.0, 0.0], top_k=5, xtc_probability=0.5, top_a=0.1, xtc_mask=mask[0],
                max_temp=1.0, logit_filter=mask)  # fmt: skip
    assert len(call.run()) == 2 and (call.tokens >= 0).all()
    ext.apply_rep_penalty(torch.zeros(2, 3, dtype=torch.int64), 1.1, -1, 0, 0.0, 0.0, f)
    empty = Call(torch.zeros(0, 1, 8), K=3)
    assert empty.run() == []


@pytest.mark.parametrize(("at", "name"), [(i, c[0]) for i, c in enumerate(hostile_calls())])
def test_hostile_call(at: int, name: str) -> None:
    _, arguments = hostile_calls()[at]
    with pytest.raises((RuntimeError, TypeError, IndexError, ValueError, OverflowError)):
        getattr(ext, name)(*arguments)


def test_keywords_are_refused_as_before() -> None:
    with pytest.raises(TypeError):
        ext.fast_fadd_cpu(a=torch.zeros(2), b=torch.zeros(2))
    with pytest.raises(TypeError):
        ext.sample_basic(**Call(torch.zeros(1, 1, 8)).arguments)
