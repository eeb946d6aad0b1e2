"""Who is let in: how many hands are in work, how many bytes each request holds, and until when it must be done.

`AdmissionControl` has the limits. An `Admission` is one request's part of them, and a context manager that everybody
enters who works for the request (whoever answers it, and the thread that computes): what it took is given back when the
last of them leaves, however that comes about.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from handmesh_server.errors import ClientGone, DeadlineExpired, QueueFull

_SURE: Final = 0.8  # of the deadline may be expected: an estimate is one
PATIENCE: Final = 2.0  # s that a photo may hold a place, before the next one gets a thread beside it
_LONGEST_MEMORY: Final = 20  # photos: their mean time is what the next is expected to take


@dataclass(eq=False)
class RequestContext:
    """One request on its way through the threads: until when somebody waits for it, and where its time went."""

    deadline: float = float("inf")  # time.monotonic()
    request_id: str = ""  # for logs
    client: str = ""  # whose it is: the name of a token, or an address
    token: str = ""  # its name
    gone: bool = False  # set by the event loop, read by the threads
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    stages: list[tuple[str, float, float]] = field(default_factory=list)  # name, from, to: time.monotonic()

    def check(self) -> None:
        """Raises ClientGone or DeadlineExpired when nobody waits any more."""
        if self.gone:
            raise ClientGone("The client went away.")
        if time.monotonic() >= self.deadline:
            raise DeadlineExpired("The deadline passed before the answer was ready.")

    def remaining(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class MemoryBudget:
    """Bytes that all requests together may hold at a time. Safe from every thread."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        return self._used

    def _take(self, count: int, wait: RequestContext | None) -> bool:
        with self._changed:
            while self._used + count > self.total:
                if wait is None:
                    return False
                wait.check()
                self._changed.wait(min(wait.remaining(), 0.25))  # to notice that the client went away
            self._used += count
            return True

    def _give(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify_all()


class Reservation:
    """One request's part of a budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._held = 0

    @property
    def held(self) -> int:
        return self._held

    def grow(self, count: int, *, wait: RequestContext | None = None) -> bool:
        """Take `count` bytes more; False when they are not there. With `wait`, as long as somebody waits for it."""
        taken = self._budget._take(count, wait)
        self._held += count if taken else 0
        return taken

    def shrink_to(self, count: int) -> None:
        """Give back what is over `count`."""
        surplus, self._held = max(0, self._held - count), min(self._held, count)
        self._budget._give(surplus)


class AdmissionControl:
    """The limits of one server. Safe from every thread."""

    def __init__(
        self,
        queue_size: int,
        memory_bytes: int,
        *,
        deadline_seconds: float = float("inf"),
        client_queue_size: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`client_queue_size()`: hands of one client at a time; None: no other limit than that of all."""
        self.queue_size = queue_size
        self.client_queue_size = client_queue_size
        self.deadline_seconds = deadline_seconds
        self.places = 1  # hands that are worked on at a time
        # An upload takes part of the memory before its photo does: were there one budget, uploads alone could fill it
        # and no photo be decoded.
        self.uploads = MemoryBudget(memory_bytes // 4)
        self.photos = MemoryBudget(memory_bytes - memory_bytes // 4)
        self.in_flight = 0  # hands that wait or are in work
        self._of_client: Counter[str] = Counter()  # of these
        self._seconds_per_hand = 0.0  # of a place: a running mean
        self._measured = 0
        self._working: dict[int, tuple[int, float]] = {}  # hands in work, and since when
        self._lock = threading.RLock()

    def admission(self, deadline: float = float("inf"), request_id: str = "", client: str = "") -> Admission:
        """Of a new request, which holds nothing yet."""
        return Admission(self, RequestContext(deadline, request_id, client))

    def seconds_per_hand(self) -> float:
        """That a place is taken by one: as those before took, or as those in work have taken already."""
        now = time.monotonic()
        with self._lock:
            # One that takes longer has lost its place (lanes.py), and says nothing about the others.
            working = [(hands, now - since) for hands, since in self._working.values() if now - since < PATIENCE]
            taken = sum(seconds for _, seconds in working) / max(1, sum(hands for hands, _ in working))
            return max(self._seconds_per_hand, taken)

    @contextmanager
    def working(self, hands: int) -> Iterator[None]:
        """For as long as a place is taken by so many hands."""
        started, key = time.monotonic(), threading.get_ident()
        with self._lock:
            self._working[key] = hands, started
        try:
            yield
        finally:
            with self._lock:
                del self._working[key]
                self._measured = min(self._measured + 1, _LONGEST_MEMORY)
                one = (time.monotonic() - started) / max(1, hands)
                self._seconds_per_hand += (one - self._seconds_per_hand) / self._measured

    def check_room(self, hands: int, own: int = 0, client: str = "") -> None:
        """Raises QueueFull when so many hands have no room now, of who has `own` in the queue already."""
        waiting = self.in_flight
        # A request with more hands than the whole queue is let into an empty one.
        if not hands or waiting <= own:
            return
        per_hand = self.seconds_per_hand() / self.places
        if waiting + hands > self.queue_size:
            seconds = waiting * per_hand / 2  # until half of them are answered
            raise QueueFull(f"{waiting} hands are waiting or in work, the limit. Try again soon.", seconds)
        theirs, limit = self._of_client[client], self.client_queue_size()
        if limit is not None and theirs > own and theirs + hands > limit:
            raise QueueFull(
                f"{theirs} hands of yours are waiting or in work, the limit of each client. Try again soon.",
                theirs * per_hand / 2,
                "client_queue_full",
            )
        seconds = (waiting + hands) * per_hand
        if seconds > _SURE * self.deadline_seconds:
            raise QueueFull(
                f"An answer would take about {seconds:.1f} s, and the deadline is {self.deadline_seconds:g} s. "
                "Try again soon.",
                seconds - _SURE * self.deadline_seconds,
                "wait_too_long",
            )

    def _enter(self, hands: int, own: int, client: str) -> None:
        with self._lock:
            self.check_room(hands, own, client)
            self.in_flight += hands
            self._of_client[client] += hands

    def _leave(self, hands: int, client: str) -> None:
        with self._lock:
            self.in_flight -= hands
            self._of_client[client] -= hands
            if not self._of_client[client]:
                del self._of_client[client]


class Admission:
    """One request while it is in."""

    def __init__(self, control: AdmissionControl, context: RequestContext) -> None:
        self.context = context
        self.upload = Reservation(control.uploads)  # what came and is not decoded yet
        self.photo = Reservation(control.photos)  # its pixels, and the answer until it is sent
        self._control = control
        self._hands = 0
        self._holders = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Admission:
        with self._lock:
            self._holders += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self.leave_queue()
            self.upload.shrink_to(0)
            self.photo.shrink_to(0)

    def enter_queue(self, hands: int) -> None:
        """Take the places of so many hands, or of so many more. Raises QueueFull."""
        if not hands:
            return
        self._control._enter(hands, self._hands, self.context.client)
        self._hands += hands

    def leave_queue(self) -> None:
        """Nothing is computed for it any more; its answer may still have to be sent."""
        hands, self._hands = self._hands, 0
        if hands:
            self._control._leave(hands, self.context.client)
