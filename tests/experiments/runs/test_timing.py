"""Functions that are timed against each other."""

from experiments.runs import timing


def test_functions_take_turns_after_a_call_that_is_not_timed(monkeypatch):
  now, called = [0.0], []
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

  def taking(name, seconds):
    def call():
      called.append(name)
      now[0] += seconds[called.count(name) - 1]

    return call

  found = timing.in_turns(
    {
      "slow": taking("slow", [9.0, 4.0, 6.0]),
      "fast": taking("fast", [9.0, 2.0, 1.0]),
    },
    rounds=2,
  )
  assert called == ["slow", "fast"] * 3
  assert {k: list(v) for k, v in found.items()} == {
    "slow": [4.0, 6.0],
    "fast": [2.0, 1.0],
  }
  # The median of 2 and 6.
  assert timing.ratios(found, "slow") == {"slow": 1.0, "fast": 4.0}
