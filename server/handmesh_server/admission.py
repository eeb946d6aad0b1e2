"""Who is let in: how many hands are in work, how many bytes each request holds, and until when it must be done.

`AdmissionControl` has the limits. An `Admission` is one request's part of them, and a context manager that everybody
enters who works for the request (whoever answers it, and the thread that computes): what it took is given back when the
last of them leaves, however that comes about.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from handmesh_server.errors import ClientGone, DeadlineExpired, QueueFull


@dataclass(eq=False)
class RequestContext:
    """One request on its way through the threads: until when somebody waits for it, and where its time went."""

    deadline: float = float("inf")  # time.monotonic()
    request_id: str = ""  # for logs
    gone: bool = False  # set by the event loop, read by the threads
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

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

    def __init__(self, queue_size: int, memory_bytes: int) -> None:
        self.queue_size = queue_size
        # An upload takes part of the memory before its photo does: were there one budget, uploads alone could fill it
        # and no photo be decoded.
        self.uploads = MemoryBudget(memory_bytes // 4)
        self.photos = MemoryBudget(memory_bytes - memory_bytes // 4)
        self.in_flight = 0  # hands that wait or are in work
        self._seconds_per_hand = 0.1  # a running mean, for Retry-After
        self._lock = threading.Lock()

    def admission(self, deadline: float = float("inf"), request_id: str = "") -> Admission:
        """Of a new request, which holds nothing yet."""
        return Admission(self, RequestContext(deadline, request_id))

    def check_room(self, hands: int, own: int = 0) -> None:
        """Raises QueueFull when so many hands have no room now, of who has `own` in the queue already."""
        # A request with more hands than the whole queue is let into an empty one.
        if self.in_flight > own and self.in_flight + hands > self.queue_size:
            seconds = self.in_flight * self._seconds_per_hand / 2  # until half of them are answered
            raise QueueFull(f"{self.in_flight} hands are waiting or in work, the limit. Try again soon.", seconds)

    def _enter(self, hands: int, own: int) -> None:
        with self._lock:
            self.check_room(hands, own)
            self.in_flight += hands

    def _leave(self, hands: int, seconds: float) -> None:
        with self._lock:
            # Those in flight take turns: a hand costs the time it was in flight over how many were.
            self._seconds_per_hand += 0.1 * (seconds / self.in_flight - self._seconds_per_hand)
            self.in_flight -= hands


class Admission:
    """One request while it is in."""

    def __init__(self, control: AdmissionControl, context: RequestContext) -> None:
        self.context = context
        self.upload = Reservation(control.uploads)  # what came and is not decoded yet
        self.photo = Reservation(control.photos)  # its pixels, and the answer until it is sent
        self._control = control
        self._hands, self._since = 0, 0.0
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
        self._control._enter(hands, self._hands)
        self._hands, self._since = self._hands + hands, self._since or time.monotonic()

    def leave_queue(self) -> None:
        """Nothing is computed for it any more; its answer may still have to be sent."""
        hands, self._hands = self._hands, 0
        if hands:
            self._control._leave(hands, time.monotonic() - self._since)
