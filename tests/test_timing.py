"""Models are timed in turns, and the machine is named."""

import time

import numpy as np

from project.timing import BATCHES, ROUNDS, in_turns, machine


def test_each_round_calls_every_model_and_the_slower_one_has_the_smaller_figure(monkeypatch):
    monkeypatch.setattr("project.timing.LEAST", 0.0)
    order = []

    def model(name, seconds):
        def call(images):
            order.append((name, len(images)))
            time.sleep(seconds)

        return call

    images = np.zeros((3, 4, 4, 3), np.uint8)
    found = in_turns({"slow": model("slow", 0.02), "fast": model("fast", 0.001)}, images)
    assert [name for name, size in order if size == 1] == ["slow", "fast"] * (1 + ROUNDS)  # the first one warms up
    assert {size for _, size in order} == {*BATCHES}
    assert found["fast"]["images_per_s_32"] > found["slow"]["images_per_s_32"]
    assert 20 <= found["slow"]["p50_ms"] <= found["slow"]["p99_ms"]


def test_the_machine_is_named():
    known = machine()
    assert known["cpu"] and known["threads"] >= 1 and isinstance(known["cpu_flags"], list)
