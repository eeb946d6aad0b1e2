"""Crops of many threads through one engine: each gets its own answer, whatever becomes of the others."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from handmesh_server.admission import RequestContext
from handmesh_server.batching import Alone, BatchingEngine, SharedEngine
from handmesh_server.errors import ClientGone, DeadlineExpired
from server_harness import wait_until

from handmesh.detect import WholeImage
from handmesh.hand import HandOutput, builtin_hand


class Echo:
    """Answers each crop with its own number (the value of its pixels). 13 is an unlucky one."""

    name, resolution, hand, record = "echo", 4, builtin_hand(), {"model": {}}

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.asked = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, crops):
        self.asked.set()
        self.open.wait()
        numbers = crops[:, 0, 0, 0].astype(float)
        self.batches.append(numbers.astype(int).tolist())
        self.threads.add(threading.get_ident())
        time.sleep(self.delay)
        if 13 in numbers:
            raise ValueError("unlucky")
        return HandOutput(
            *(np.repeat(numbers[:, None], width, axis=1) for width in range(3, 3 + len(HandOutput._fields)))
        )


def crops(*numbers: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), number, np.uint8) for number in numbers])


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def engine(echo):
    batching = BatchingEngine(echo, max_batch=4)
    yield batching
    echo.open.set()
    batching.close()


def ask(engine: BatchingEngine, *numbers: int) -> HandOutput:
    return engine.for_request(RequestContext())(crops(*numbers))


def blocked(echo: Echo, engine: BatchingEngine, pool: ThreadPoolExecutor):
    """Keep the model thread busy with crop 1, so that what comes now waits."""
    echo.open.clear()
    first = pool.submit(ask, engine, 1)
    assert echo.asked.wait(90)
    return first


def test_everyone_gets_their_own_answer(echo, engine):
    with ThreadPoolExecutor(16) as pool:
        asked = [tuple(np.random.default_rng(i).integers(20, 250, size=1 + i % 6)) for i in range(200)]
        for numbers, output in zip(asked, pool.map(lambda one: ask(engine, *one), asked), strict=True):
            assert [part.shape[1] for part in output] == [*range(3, 3 + len(HandOutput._fields))]
            for part in output:
                np.testing.assert_array_equal(part, np.repeat(np.array(numbers)[:, None], part.shape[1], axis=1))
    assert len(echo.threads) == 1, "an engine is called by one thread"
    assert max(map(len, echo.batches)) <= 4


def test_a_single_caller_does_not_wait_for_others(echo, engine, monkeypatch):
    """No window in which a batch might still fill: the model's thread waits for crops alone, never for a time."""
    wait, timeouts = engine._changed.wait, []

    def waiting(timeout: float | None = None) -> bool:
        timeouts.append(timeout)
        return wait(timeout)

    monkeypatch.setattr(engine._changed, "wait", waiting)
    for number in range(50):
        ask(engine, number + 20)
    assert set(timeouts) == {None}
    assert echo.batches == [[number + 20] for number in range(50)]


def test_what_waits_goes_together(echo, engine):
    with ThreadPoolExecutor(8) as pool:
        blocked(echo, engine, pool)
        for number in range(20, 26):
            pool.submit(ask, engine, number)
            wait_until(lambda expected=number - 19: engine.depth == expected)
        echo.open.set()
    assert echo.batches == [[1], [20, 21, 22, 23], [24, 25]], "in the order of arrival, as many as fit"


def test_one_bad_crop_harms_nobody(echo, engine):
    """A failing batch is tried again one by one; only the request with the bad crop fails."""
    with ThreadPoolExecutor(8) as pool:
        blocked(echo, engine, pool)
        answers = [pool.submit(ask, engine, number) for number in (20, 13, 22)]
        wait_until(lambda: engine.depth == 3)
        echo.open.set()
        assert answers[0].result().camera[0, 0] == 20
        with pytest.raises(ValueError, match="unlucky"):
            answers[1].result()
        assert answers[2].result().camera[0, 0] == 22
    assert ask(engine, 30).camera[0, 0] == 30, "and the model thread lives"


def test_nobody_waits_for_the_expired_and_the_gone(echo, engine):
    """Their crops never reach the engine, not even as a part of a batch."""

    def ask_for(context: RequestContext, number: int):
        return engine.run(crops(number), context)

    gone, expired, waiting = RequestContext(), RequestContext(deadline=time.monotonic() + 0.05), RequestContext()
    with ThreadPoolExecutor(8) as pool:
        blocked(echo, engine, pool)
        answers = [pool.submit(ask_for, context, 20 + i) for i, context in enumerate((gone, expired, waiting))]
        wait_until(lambda: engine.depth == 3)
        gone.gone = True
        time.sleep(0.06)
        echo.open.set()
        with pytest.raises(ClientGone):
            answers[0].result()
        with pytest.raises(DeadlineExpired):
            answers[1].result()
        assert answers[2].result().camera[0, 0] == 22
    assert echo.batches == [[1], [22]]
    assert waiting.seconds["queue"] > 0.06, "and it is known where it waited"


def test_an_engine_that_loses_a_crop_is_found_out(engine, monkeypatch):
    monkeypatch.setattr(engine, "_engine", lambda _: HandOutput(*(np.zeros((2, 3)) for _ in HandOutput._fields)))
    with pytest.raises(RuntimeError, match="2 of 1"):
        ask(engine, 20)


def test_closing_answers_what_waits(echo):
    engine = BatchingEngine(echo, max_batch=1)
    with ThreadPoolExecutor(8) as pool:
        blocked(echo, engine, pool)
        answers = [pool.submit(ask, engine, number) for number in (20, 21)]
        wait_until(lambda: engine.depth == 2)
        closing = pool.submit(engine.close)
        echo.open.set()
        closing.result()
        assert [answer.result().camera[0, 0] for answer in answers] == [20, 21]
    with pytest.raises(RuntimeError, match="closed"):
        ask(engine, 22)


def test_it_is_told_about_batches(echo):
    told = []
    engine = BatchingEngine(echo, max_batch=8, on_batch=lambda size, seconds: told.append((size, seconds >= 0)))
    ask(engine, 20, 21, 22)
    engine.close()
    assert sum(size for size, _ in told) == 3
    assert all(sane for _, sane in told)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_who_is_alone_has_all_threads_and_the_same_answers(count):
    """Crops are shared out, one goes to the engine of many threads; beside others all go to the one of one thread."""
    one, many, alone = Echo(), Echo(), True
    detector = WholeImage()
    engine = SharedEngine(one, alone=Alone(many, detector, 3, lambda: alone))
    numbers = list(range(20, 20 + count))
    wanted = np.repeat(np.array(numbers)[:, None], 3, axis=1)
    np.testing.assert_array_equal(engine.for_request(RequestContext())(crops(*numbers)).camera, wanted)
    assert sorted(number for batch in one.batches for number in batch) == (numbers if count > 1 else [])
    assert many.batches == ([numbers] if count == 1 else [])
    assert len(one.batches) == (min(3, count) if count > 1 else 0)
    assert engine.detector is detector
    one.batches, alone = [], False
    assert engine.detector is None
    np.testing.assert_array_equal(engine.for_request(RequestContext())(crops(*numbers)).camera, wanted)
    assert one.batches == [numbers]
    engine.close()
