"""A live stream of frames over the service's WebSocket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple
from urllib.parse import SplitResult

import numpy as np
from handmesh_server.stream import DecodedHand, decode_frame
from numpy.typing import NDArray

from handmesh.client.http import ServiceError, refusal
from handmesh.files.image import encode_image

_MAX_ANSWER = 1 << 24  # bytes


class StreamAnswer(NamedTuple):
    """One frame's answer."""

    number: int  # of the frame, from 0
    size: tuple[int, int]  # width, height in px
    hands: list[DecodedHand]  # none where there is no hand
    server_ms: float
    model_ms: float


class LiveStream:
    """Frames in, hands out, in their order; of frames that come faster than they are answered the newest is kept.

    `stream(frame)` sends one and waits. Faster: `send` the next before `receive` of the last. For one thread each.
    """

    def __init__(
        self, address: SplitResult, headers: Mapping[str, str], options: Mapping[str, Any], timeout: float
    ) -> None:
        """`options` as of a text message of the stream: hand, box, max_hands, vertices, smooth. Raises ServiceError."""
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        scheme = "wss" if address.scheme == "https" else "ws"
        url = f"{scheme}://{address.netloc}{address.path.rstrip('/')}/v1/stream"
        self._timeout = timeout
        self._held = ExitStack()
        try:
            connecting = connect(
                url,
                subprotocols=["handmesh.v1"],  # type: ignore[list-item]
                additional_headers=dict(headers),
                max_size=_MAX_ANSWER,
                open_timeout=timeout,
                compression=None,
                proxy=None,  # as for all other requests
            )
            self._socket = self._held.enter_context(connecting)
        except InvalidStatus as error:
            raise refusal(error.response.status_code, bytes(error.response.body or b"")) from None
        except (OSError, WebSocketException) as error:
            raise ServiceError(f"{url} cannot be reached: {error}.") from error
        try:
            event = self._received()
            if not isinstance(event, str) or json.loads(event).get("type") != "ready":
                raise ServiceError("The service did not say that it is ready.", 0, "protocol")
            if options:
                self._sent(json.dumps(dict(options), default=lambda value: np.asarray(value).tolist()))
        except BaseException:
            self.close()
            raise

    def __call__(self, frame: bytes | NDArray[np.uint8]) -> StreamAnswer:
        """The hands of a frame. Raises ServiceError."""
        self.send(frame)
        return self.receive()

    def send(self, frame: bytes | NDArray[np.uint8]) -> None:
        """An encoded image, or (H, W, 3) uint8 RGB, which is sent as a JPEG. Raises ServiceError."""
        self._sent(frame if isinstance(frame, bytes) else encode_image(frame, "jpeg"))

    def receive(self) -> StreamAnswer:
        """The next answer. Raises ServiceError: also for a frame that was refused, after which the stream goes on."""
        answer = self._received()
        if isinstance(answer, str):
            event = json.loads(answer)
            raise ServiceError(str(event.get("detail", answer)), event.get("status", 0), event.get("reason", "refused"))
        frame, hands = decode_frame(answer)
        return StreamAnswer(frame.number, (frame.width, frame.height), hands, frame.server_ms, frame.model_ms)

    def _sent(self, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(message)
        except ConnectionClosed as error:
            raise _closed(error) from None

    def _received(self) -> str | bytes:
        from websockets.exceptions import ConnectionClosed

        try:
            return self._socket.recv(self._timeout)
        except ConnectionClosed as error:
            raise _closed(error) from None
        except TimeoutError:
            raise ServiceError(f"The service did not answer within {self._timeout:g} s.", 0, "timeout") from None

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> LiveStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _closed(error: Any) -> ServiceError:
    close = error.rcvd
    if close is None:
        return ServiceError("The connection of the stream was lost.")
    return ServiceError(close.reason or f"The stream was closed ({close.code}).", 0, "closed")
