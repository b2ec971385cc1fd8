"""The loop on a fake model: batching changes nothing, rows move safely, ends are right, failures
are told."""

from __future__ import annotations

import itertools

import pytest

from nybble.errors import NybbleError, RequestError
from nybble.generator.engine import completion
from nybble.generator.request import SamplingParams
from tests.generator.fake import EOS, VOCAB, FakeModel, FakeTokenizer, ask, engine, says

PROMPTS = ["a", "some words", "another prompt", "b" * 40, "the end", "x"]


def run_all(engine, requests):
    return [completion(list(engine.pieces(r))) for r in requests]


def alone(prompt, **params):
    one = engine()
    return run_all(one, [ask(one, prompt, **params)])[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("reuse", [False, True])
def test_batch_equals_one_by_one(rows, reuse):
    lengths = [3, 17, 5, 9, 30, 1]  # rows end at different times, so others move into their place
    together = engine(rows=rows, reuse=reuse)
    requests = [
        ask(together, p, max_tokens=n, temperature=0) for p, n in zip(PROMPTS, lengths, strict=True)
    ]
    for prompt, n, got in zip(PROMPTS, lengths, run_all(together, requests), strict=True):
        assert got.token_ids == alone(prompt, max_tokens=n, temperature=0).token_ids
        assert (got.finish_reason, got.usage.completion_tokens) == ("length", n)


def test_rows_decode_together():
    model = FakeModel()
    together = engine(model)
    run_all(together, [ask(together, p, max_tokens=10) for p in PROMPTS[:3]])
    assert max(rows for rows, _ in model.runs) == 3


def test_seeded_tokens_do_not_depend_on_neighbours():
    want = alone("a", max_tokens=20, seed=5).token_ids
    crowd = engine()
    requests = [ask(crowd, p, max_tokens=20, seed=5 if p == "a" else None) for p in PROMPTS]
    assert run_all(crowd, requests)[0].token_ids == want
    assert alone("a", max_tokens=20, seed=6).token_ids != want


def test_long_prompt_is_read_in_pieces_between_decode_steps(monkeypatch):
    monkeypatch.setattr("nybble.generator.scheduler.PREFILL_TOKENS", 4)
    model = FakeModel()
    mixed = engine(model)
    requests = [
        ask(mixed, "a", max_tokens=12, temperature=0),
        ask(mixed, "b" * 18, max_tokens=3, temperature=0),
    ]
    first, second = run_all(mixed, requests)
    assert (1, 4) in model.runs
    assert all(not (a == b == (1, 4)) for a, b in itertools.pairwise(model.runs))
    monkeypatch.undo()
    assert first.token_ids == alone("a", max_tokens=12, temperature=0).token_ids
    assert second.token_ids == alone("b" * 18, max_tokens=3, temperature=0).token_ids


def test_a_row_that_ends_while_another_reads_its_prompt(monkeypatch):
    monkeypatch.setattr("nybble.generator.scheduler.PREFILL_TOKENS", 4)
    mixed = engine()
    asked = [("a", 2), ("c", 9), ("b" * 30, 5)]
    got = run_all(mixed, [ask(mixed, p, max_tokens=n, temperature=0) for p, n in asked])
    monkeypatch.undo()
    for (prompt, n), result in zip(asked, got, strict=True):
        assert result.token_ids == alone(prompt, max_tokens=n, temperature=0).token_ids


def test_prefix_is_reused_from_any_free_row():
    model = FakeModel()
    kept = engine(model, reuse=True)
    run_all(
        kept, [ask(kept, p, max_tokens=2, temperature=0) for p in ("first prompt", "second prompt")]
    )
    model.runs.clear()
    again = ask(kept, "second prompt, longer", max_tokens=2, temperature=0)
    got = run_all(kept, [again])[0]
    assert again.reused == len("second prompt")
    assert got.timings.prefill_tokens == len(", longer")
    assert got.token_ids == alone("second prompt, longer", max_tokens=2, temperature=0).token_ids


def test_the_same_prompt_again_computes_one_token():
    kept = engine(reuse=True)
    first, second = (
        run_all(kept, [ask(kept, "again", max_tokens=4, temperature=0)])[0] for _ in range(2)
    )
    assert first.token_ids == second.token_ids
    assert second.timings.prefill_tokens == 1


def test_eos_stops_and_is_not_text():
    model = says([ord("h") + 1, ord("i") + 1, EOS])
    got = run_all(model, [ask(model, max_tokens=50)])[0]
    assert (got.text, got.finish_reason, got.token_ids[-1]) == ("hi", "stop", EOS)
    more = says([ord("h") + 1, EOS, ord("i") + 1])
    got = run_all(more, [ask(more, max_tokens=3, ignore_eos=True)])[0]
    assert (got.text, got.finish_reason) == ("hi", "length")


def test_stop_string_over_token_borders():
    model = says(FakeTokenizer().encode("one, stopping, STOP now"))
    got = list(model.pieces(ask(model, max_tokens=50, stop=["STOP"])))
    assert "".join(p.text for p in got) == "one, stopping, "
    assert got[-1].finish_reason == "stop"


def test_max_tokens_none_fills_the_context():
    small = engine(context=32)
    got = run_all(small, [ask(small, "abcd", max_tokens=None)])[0]
    assert (got.usage.completion_tokens, got.finish_reason) == (28, "length")


def test_a_larger_request_waits_for_a_larger_cache():
    grows = engine(context=2000)
    requests = [ask(grows, "a", max_tokens=5), ask(grows, "b", max_tokens=700)]
    late = iter(grows.pieces(requests[0]))
    next(late)
    requests.append(ask(grows, "c", max_tokens=1500))
    assert [c.usage.completion_tokens for c in run_all(grows, requests[1:])] == [700, 1500]


@pytest.mark.parametrize(
    ("prompt", "params", "text"),
    [
        ([], {}, "no tokens"),
        ([VOCAB], {}, "token id 512; expected ids in 0..511"),
        ([1] * 256, {}, "256 tokens; the context is 256"),
        ([1] * 200, {"max_tokens": 57}, "set max_tokens to 56 or less"),
    ],
)
def test_requests_that_cannot_be_served(prompt, params, text):
    with pytest.raises(RequestError, match=text):
        engine().request(prompt, SamplingParams(**params))


def test_cancel_waiting_and_running():
    busy = engine(rows=1)
    first, second, third = (ask(busy, p, max_tokens=50, temperature=0) for p in ("a", "b", "c"))
    stream = busy.pieces(first)
    next(stream)
    stream.close()  # a reader who leaves
    busy.cancel(second)
    got = run_all(busy, [third])[0]
    assert first.finish_reason == second.finish_reason == "cancelled"
    assert got.token_ids == alone("c", max_tokens=50, temperature=0).token_ids


def test_streams_read_in_turns_run_together():
    model = FakeModel()
    both = engine(model)
    requests = [ask(both, p, max_tokens=6, temperature=0) for p in "ab"]
    streams = [both.pieces(r) for r in requests]
    turns = list(itertools.zip_longest(*streams))
    for i, prompt in enumerate("ab"):
        ids = [t for pieces in turns if pieces[i] for t in pieces[i].token_ids]
        assert ids == alone(prompt, max_tokens=6, temperature=0).token_ids
    assert (2, 1) in model.runs


def test_a_failed_run_fails_its_requests_and_the_engine_goes_on():
    model = FakeModel()
    breaks = engine(model)
    requests = [ask(breaks, p, max_tokens=5) for p in "ab"]
    streams = [breaks.pieces(r) for r in requests]
    for stream in streams:
        next(stream)
    model.broken = True
    with pytest.raises(MemoryError):
        list(streams[0])
    with pytest.raises(MemoryError):
        list(streams[1])
    model.broken = False
    assert len(run_all(breaks, [ask(breaks, "c", max_tokens=5)])[0].token_ids) == 5


def test_logits_that_are_not_numbers():
    model = FakeModel()
    model._logits = lambda row: FakeModel._logits(model, row) * float("nan")  # type: ignore[method-assign]
    bad = engine(model)
    with pytest.raises(NybbleError, match="not numbers after 1 tokens"):
        run_all(bad, [ask(bad, "a")])


def test_repetition_penalty_forbids_what_was_said():
    plain = alone("aa", max_tokens=30, temperature=0).token_ids
    strict = alone("aa", max_tokens=30, temperature=0, repetition_penalty=100.0).token_ids
    assert strict != plain or len(set(plain)) == 30
    assert len(set(strict)) == 30


def test_timings_and_usage():
    got = alone("four", max_tokens=7)
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (4, 7)
    assert (got.timings.prefill_tokens, got.timings.decode_tokens) == (4, 6)
    assert got.timings.prefill_rate > 0 and got.timings.decode_rate > 0
