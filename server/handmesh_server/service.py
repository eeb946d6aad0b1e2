"""What happens to a photograph between upload and answer, and how much of it happens at once.

`HandService` owns the threads. The event loop lets a request in (admission.py) when there is a place in the queue. When
its turn has come (lanes.py) it has a thread of its own that decodes, predicts and encodes, and checks before each step
whether anybody still waits. On a CPU there are as many at a time as threads, for a GPU enough to fill its batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from handmesh import __version__
from handmesh.detect.hands import HandDetector
from handmesh.errors import HandMeshError
from handmesh.files.image import LargePhoto, Photo, encode_image, open_photo, read_header, read_photo
from handmesh.hand import builtin_hand
from handmesh.hand.models import HAND_MODELS
from handmesh.model.bundled import BUNDLED_MODEL, find_model
from handmesh.predict import HandPrediction, Predictor, load_predictor
from handmesh.runtime.onnx import OnnxEngine
from handmesh.system.cpus import default_threads
from handmesh_server.admission import Admission, AdmissionControl, RequestContext
from handmesh_server.answers import MEDIA_TYPES, Answer, encode_answer
from handmesh_server.batching import Alone, BatchingEngine, SharedEngine
from handmesh_server.errors import ClientGone, DeadlineExpired, NotReady, UploadTooLarge
from handmesh_server.input import read_form
from handmesh_server.lanes import Lanes
from handmesh_server.metrics import Metrics, merged
from handmesh_server.quarantine import Quarantine
from handmesh_server.schemas import HandsQuery
from handmesh_server.settings import Settings
from handmesh_server.stream import StreamFollower
from handmesh_server.tokens import Tokens

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Bytes per pixel while a photograph is decoded: an RGBA image turned by EXIF, the worst case, takes this at its peak.
DECODE_BYTES: Final = 30
# Afterwards: the photograph; and with a picture to answer, its copy with the hands drawn, and the encoded picture.
PHOTO_BYTES, OVERLAY_BYTES = 3, 10

# Of a stream's frame: twice that of 1920 x 1080. The hand is cut out and shrunk anyway.
FRAME_PIXELS: Final = 2**22

_CUDA_BATCH: Final = 16

_RECENT_SECONDS: Final = 2.0  # since the network's last answer; within so many it answers a probe, or is stalled


# The answer of its hands to a photograph, asked for by a query, as a form completed it.
Encode = Callable[[Sequence[HandPrediction], Photo | LargePhoto, HandsQuery], Answer]


@dataclass(eq=False)
class PhotoRequest:
    """What was posted, ready for its thread."""

    body: bytes  # let go when the photo is decoded
    content_type: str
    query: HandsQuery
    encode: Encode
    draws: bool = False  # the answer is a picture: memory for another one is set aside


class HandService:
    """Start it, let requests through, drain it, close it."""

    def __init__(self, settings: Settings, predictor: Predictor | None = None) -> None:
        """With `predictor` None, `start` loads the model that the settings name, in the background."""
        self.settings = settings
        self.metrics = Metrics()
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None  # told, in a thread, when the model cannot be loaded
        self.control = AdmissionControl(
            settings.queue_size,
            settings.memory_bytes,
            deadline_seconds=settings.deadline_seconds,
            client_queue_size=self._client_queue_size,
        )
        self.quarantine = Quarantine()
        self.tokens = Tokens(settings.token, settings.token_file)
        # Of several processes each is asked by chance; this has what all of them counted, by process.
        self.metrics_of_all: Callable[[], Awaitable[Mapping[int, bytes]]] | None = None
        self._given = predictor
        self._predictor: Predictor | None = None
        self._engine: SharedEngine | BatchingEngine | None = None
        self.leaving = self._draining = False
        self._last_answer = -math.inf  # of the network
        self._probe: Future[None] | None = None
        self._lanes = Lanes(settings.threads or default_threads())
        self.control.places = self._lanes.places
        metrics = self.metrics
        metrics.watch(metrics.ready, lambda: float(self.state == "ready"))
        metrics.watch(metrics.in_flight, lambda: self.control.in_flight)
        metrics.watch(metrics.queue_depth, lambda: self._lanes.depth + (self._engine.depth if self._engine else 0))
        metrics.watch(metrics.memory, lambda: self.control.uploads.used + self.control.photos.used)

    def client_part(self, total: int) -> int:
        """Of places, so that no client takes all: three quarters where they have names.

        Addresses may be a proxy's, and one name is everybody's.
        """
        return max(1, 3 * total // 4) if len(self.tokens.names) > 1 else total

    def _client_queue_size(self) -> int:
        return self.settings.client_queue_size or self.client_part(self.settings.queue_size)

    # Life

    def start(self) -> threading.Thread:
        """Load and warm up the model in a thread of its own, which ends when that is done, or has failed."""
        loading = threading.Thread(target=self._load, name="handmesh-load", daemon=True)
        loading.start()
        return loading

    def _load(self) -> None:
        started = time.monotonic()
        try:
            settings = self.settings
            predictor = self._given or load_predictor(settings.model, passes=settings.passes, threads=1)
            # A CPU computes two crops no faster than one and one; a GPU sixteen in little more than one's time.
            batch = settings.max_batch or (_CUDA_BATCH if "cuda" in predictor.engine.name else 1)
            engine: SharedEngine | BatchingEngine
            if batch > 1:
                self.control.places = self._lanes.places = max(self._lanes.places, 2 * batch)
                engine = BatchingEngine(predictor.engine, batch, on_batch=self._on_batch)
            else:
                alone = self._alone(predictor)
                engine = SharedEngine(predictor.engine, alone=alone, on_batch=self._on_batch)
            _warm_up(predictor)
            # Which may be others.
            _warm_up(predictor.with_engine(engine.for_request(RequestContext()), engine.detector))
        except Exception as error:  # any of them means: this process will never answer
            self.failure = error
            logger.error("the model cannot be loaded: %s", error, exc_info=not isinstance(error, HandMeshError))
            self.on_failure()
            return
        self._engine, self._predictor = engine, predictor
        card = self.card()
        self.metrics.model.info(
            {"name": card["name"], "engine": card["engine"], "hand": card["hand"]["name"], "version": __version__}
        )
        logger.info("ready in %.1f s: %s on %s", time.monotonic() - started, card["name"], card["engine"])

    def _alone(self, predictor: Predictor) -> Alone | None:
        """For a photo that is alone, all threads. Measured (docs/explain/service.md): for several it is better if each
        has one, and threads that spin while they wait for each other take twice the processor time.
        """
        threads = self._lanes.places
        if self._given is not None or threads == 1 or not isinstance(predictor.engine, OnnxEngine):
            return None
        engine = OnnxEngine(find_model(self.settings.model), threads=threads, spinning=False)
        detector = HandDetector(threads=threads, spinning=False)
        return Alone(engine, detector, threads, lambda: self._lanes.busy <= 1)

    @property
    def state(self) -> str:
        """loading, ready, draining or failed."""
        if self.leaving:
            return "draining"
        if self.failure is not None:
            return "failed"
        return "loading" if self._predictor is None else "ready"

    def _on_batch(self, crops: int, seconds: float) -> None:
        self._last_answer = time.monotonic()
        self.metrics.on_batch(crops, seconds)

    async def readiness(self) -> str:
        """`state`, and "stalled" where the network does not answer: none lately, and none to a crop of our own now."""
        if self.state == "ready" and time.monotonic() - self._last_answer > _RECENT_SECONDS:
            if self._probe is None or self._probe.done():
                self._probe = self._lanes.submit(self._answer_probe)
            answered = asyncio.wrap_future(self._probe)
            answered.add_done_callback(_discard_exception)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(answered), _RECENT_SECONDS)
                return self.state
            return "stalled"
        return self.state

    def _answer_probe(self) -> None:
        _, engine = self._ready()
        grey = np.full((1, engine.resolution, engine.resolution, 3), 128, np.uint8)
        engine.for_request(RequestContext(time.monotonic() + _RECENT_SECONDS))(grey)

    def leave(self) -> None:
        """Say to balancers that they should look elsewhere, and to clients that they should close; still answer."""
        self.leaving = True

    def drain(self) -> None:
        """Refuse what comes from now on; what was admitted is finished."""
        self.leaving = self._draining = True

    async def close(self) -> None:
        """After the last answer."""
        self.drain()
        await asyncio.to_thread(self._lanes.close)
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    async def metrics_text(self) -> bytes:
        """For Prometheus; with a label `worker` where there are several."""
        return self.metrics.text() if self.metrics_of_all is None else merged(await self.metrics_of_all())

    def card(self) -> dict[str, Any]:
        """schemas.ModelCard. Raises NotReady."""
        predictor, batching = self._ready()
        engine, hand = predictor.engine, predictor.engine.hand
        config = engine.record.get("model")
        source = HAND_MODELS.get(config.get("hand", "builtin") if isinstance(config, dict) else "builtin")
        ours = hand.sha256 == builtin_hand().sha256
        licence = "Apache-2.0" if ours else source.licence if source is not None else "its own"
        name = Path(self.settings.model or BUNDLED_MODEL).stem if self._given is None else "given"
        return {
            "name": name,
            "engine": engine.name,
            "backbone": config.get("backbone") if isinstance(config, dict) else None,
            "resolution": engine.resolution,
            "passes": predictor.passes,
            "max_batch": batching.max_batch,
            "hand": {
                "name": "handmesh built-in" if ours else source.name if source is not None else "other",
                "sha256": hand.sha256,
                "licence": licence,
            },
            "licences": {"code": "Apache-2.0", "meshes": licence},
            "version": __version__,
        }

    def topology_hand(self) -> Any:
        """The HandArrays of the answers. Raises NotReady."""
        return self._ready()[0].engine.hand

    # Requests

    def check_open(self, hands: int, client: str = "") -> None:
        """Raises NotReady or QueueFull: asked before an upload is read, so that refusing is cheap."""
        self._ready()
        self.control.check_room(hands, client=client)

    async def answer(
        self, request: PhotoRequest, admission: Admission, disconnected: Callable[[], Coroutine[Any, Any, None]]
    ) -> Answer:
        """Let in, and run in a thread. `disconnected()` returns when the client went away.

        Raises NotReady, QueueFull, DeadlineExpired, ClientGone, and what the thread raises. When the deadline passes
        the answer comes at once; the thread notices at its next step, and keeps its place in the queue until then.
        """
        work = partial(self._run, request, admission)
        return await self._in_a_thread(work, request.query.hands, admission, disconnected)

    async def follow(
        self,
        frame: bytes,
        arrived: float,
        follower: StreamFollower,
        admission: Admission,
        disconnected: Callable[[], Coroutine[Any, Any, None]],
    ) -> tuple[Photo | LargePhoto, list[HandPrediction]]:
        """The hands of a stream's next frame, which came at `arrived` seconds (`time.monotonic`).

        Let in, run and refused as a photo is in `answer`.
        """
        work = partial(self._run_frame, frame, arrived, follower, admission)
        return await self._in_a_thread(work, 1, admission, disconnected)

    async def _in_a_thread(
        self,
        work: Callable[[], Result],
        hands: int,
        admission: Admission,
        disconnected: Callable[[], Coroutine[Any, Any, None]],
    ) -> Result:
        """As `answer` says."""
        self._ready()
        admission.enter_queue(hands)

        held = ExitStack()  # from here on, for its caller may be gone before the thread begins
        held.enter_context(admission)
        held.callback(admission.leave_queue)
        admitted = time.monotonic()

        def run() -> Result:
            with held:
                admission.context.add("queue", time.monotonic() - admitted)
                admission.context.check()
                with self.control.working(hands):
                    return work()

        running = asyncio.wrap_future(self._lanes.submit(run))
        watching: asyncio.Task[None] = asyncio.ensure_future(disconnected())
        either: set[asyncio.Future[Any]] = {running, watching}
        try:
            await asyncio.wait(either, timeout=admission.context.remaining(), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            if watching.done():
                raise ClientGone("The client went away.")
            seconds = self.settings.deadline_seconds
            raise DeadlineExpired(f"No answer within {seconds:g} s, the deadline. Try again when there is less to do.")
        except BaseException:  # also when this task is cancelled
            admission.context.gone = True
            running.add_done_callback(_discard_exception)
            raise
        finally:
            watching.cancel()

    def _run(self, request: PhotoRequest, admission: Admission) -> Answer:
        """In the request's own thread."""
        context = admission.context
        with self.metrics.stage("decode", context):
            encoded, fields = read_form(request.body, request.content_type)
            query = request.query.with_fields(fields)
            admission.enter_queue(query.hands - request.query.hands)  # boxes that only the form had
        with self.quarantine.work_on(encoded, context):
            photo = self._open(encoded, admission, draws=request.draws)
            del encoded
            request.body = b""
            if isinstance(photo, Photo):  # the other kind has them still
                admission.upload.shrink_to(0)
            with self._predicting(context) as predictor:
                hands = _predict(predictor, photo, query)
            with self.metrics.stage("encode", context):
                answer = request.encode(hands, photo, query)
        self.metrics.hands.inc(len(hands))
        return answer

    def _run_frame(
        self, frame: bytes, arrived: float, follower: StreamFollower, admission: Admission
    ) -> tuple[Photo | LargePhoto, list[HandPrediction]]:
        """In a thread of its own, like `_run`."""
        context = admission.context
        with self.quarantine.work_on(frame, context):
            photo = self._open(frame, admission, draws=True, max_pixels=FRAME_PIXELS)
            with self._predicting(context) as predictor:
                hands = follower(predictor, photo, arrived)
        self.metrics.hands.inc(len(hands))
        return photo, hands

    @contextmanager
    def _predicting(self, context: RequestContext) -> Iterator[Predictor]:
        """The stage "predict": crops and what else the Predictor does, without decoding and the model."""

        def waited() -> float:
            return sum(context.seconds.get(stage, 0.0) for stage in ("decode", "queue", "model"))

        predictor, batching = self._ready(even_draining=True)
        before = waited()
        with self.metrics.stage("predict", context):
            yield predictor.with_engine(batching.for_request(context), batching.detector)
        context.add("predict", before - waited())

    def _open(
        self, encoded: bytes, admission: Admission, *, draws: bool, max_pixels: int | None = None
    ) -> Photo | LargePhoto:
        """A large JPEG is decoded later, no finer than its crops need, and in full where somebody `draws` on it."""
        max_bytes = self.settings.max_body_bytes
        max_pixels = min(max_pixels or self.settings.max_pixels, self.settings.max_pixels)
        header = read_header(encoded, max_bytes=max_bytes, max_pixels=max_pixels)
        in_full = header.width * header.height
        if in_full * DECODE_BYTES > self.control.photos.total:
            raise UploadTooLarge(
                f"The image is {header.width} x {header.height} pixels, more than this server has memory for."
            )

        def decoding(pixels: int, decoder_bytes: int, forget: Callable[[], None]) -> AbstractContextManager[None]:
            kept_bytes = pixels * (OVERLAY_BYTES if draws and pixels == in_full else PHOTO_BYTES)
            return self._decoding(admission, pixels * DECODE_BYTES + decoder_bytes, kept_bytes, forget)

        return open_photo(encoded, max_bytes=max_bytes, max_pixels=max_pixels, decoding=decoding)

    @contextmanager
    def _decoding(
        self, admission: Admission, decode_bytes: int, kept_bytes: int, forget: Callable[[], None]
    ) -> Iterator[None]:
        """The stage "decode", with memory for it; afterwards `kept_bytes` more are kept than before."""
        memory = admission.photo
        if not memory.grow(decode_bytes):  # who waits holds nothing: others may wait for that, or this photo itself
            forget()
            memory.shrink_to(0)
            memory.grow(decode_bytes, wait=admission.context)
        held = memory.held - decode_bytes
        with self.metrics.stage("decode", admission.context):
            yield
        memory.shrink_to(held + kept_bytes)

    def _ready(self, even_draining: bool = False) -> tuple[Predictor, SharedEngine | BatchingEngine]:
        """Raises NotReady."""
        if self._predictor is None or self._engine is None or (self._draining and not even_draining):
            state = self.state
            why = {
                "loading": "The model is being loaded.",
                "draining": "The server is shutting down.",
                "failed": "The model could not be loaded; the server's log says why.",
            }[state]
            raise NotReady(why, state)
        return self._predictor, self._engine


def _predict(predictor: Predictor, photo: Photo | LargePhoto, query: HandsQuery) -> list[HandPrediction]:
    return predictor(
        photo,
        boxes=query.boxes,
        handedness=query.sides,
        focal=query.focal,
        fov=query.fov_radians,
        search=query.search,
        min_score=query.min_score,
        max_hands=query.max_hands,
    )


def _warm_up(predictor: Predictor) -> None:
    """Everything that a first request would otherwise wait for: imports, compiled kernels, the engine's first run."""
    grey = np.full((64, 48, 3), 128, np.uint8)
    photo = read_photo(encode_image(grey, "jpeg"))
    for query in (HandsQuery(min_score=0), HandsQuery(min_score=0, hand=["left"])):
        hands = _predict(predictor, photo, query)
        for media_type in MEDIA_TYPES:
            encode_answer(hands, photo, query, media_type=media_type)


def _discard_exception(running: asyncio.Future[Any]) -> None:
    if not running.cancelled():
        running.exception()  # asyncio would report one that nobody asked for
