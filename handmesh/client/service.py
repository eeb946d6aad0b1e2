"""What can be asked of a service, as methods."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final
from urllib.parse import urlencode

import numpy as np
from handmesh_server.schemas import BatchEnd, BatchLine, HandsAnswer, Job, ModelCard, Topology

from handmesh.client.http import Connection, ServiceError
from handmesh.client.live import LiveStream
from handmesh.errors import ImageError
from handmesh.files.image import ImageSource, encode_image, read_image
from handmesh.system.atomic import written_atomically

Photo = ImageSource

_POLL_SECONDS: Final = 0.5


class Client:
    """A service, over a connection that is kept. For one thread; several clients may ask one service.

    The keywords of `hands`, `batch` and `post_video` are the queries of the service's manual, `/docs`; lists for what
    may be given several times. All methods raise ServiceError where the service refuses or cannot be reached.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout: float = 60.0,
        patience: float = 60.0,
    ) -> None:
        """`timeout`: seconds for the network to do something. `patience`: seconds to go on where the service is busy.

        Raises ConfigError when `url` is no address.
        """
        self._settings: dict[str, Any] = {"timeout": timeout, "patience": patience}
        self._url, self._token, self._timeout = url, token, timeout
        self._connection = self._connect()

    def _connect(self) -> Connection:
        return Connection(self._url, self._token, **self._settings)

    def hands(self, photo: Photo, **query: Any) -> HandsAnswer:
        """The hands of a photo: a path, the bytes of a file, (H, W, 3) uint8 RGB, or a PIL image, as for `read_photo`.

        Raises ImageError when there is no such file, and for what is no picture.
        """
        query = {"encoding": "base64", **query}
        return HandsAnswer.model_validate_json(self._posted(photo, query, "application/json"))

    def rendered(self, photo: Photo, media_type: str, **query: Any) -> bytes:
        """A photo's hands in another form: model/gltf-binary, model/obj, application/x-npz, image/png or image/jpeg."""
        return self._posted(photo, query, media_type)

    def model(self) -> ModelCard:
        """Which model answers."""
        return ModelCard.model_validate_json(self._connection.content("GET", "/v1/model"))

    def topology(self) -> Topology:
        """Faces, joint names and bones, which are the same for all hands."""
        return Topology.model_validate_json(self._connection.content("GET", "/v1/topology"))

    def batch(self, photos: str | os.PathLike[str] | Iterable[Photo], **query: Any) -> Iterator[BatchLine]:
        """Many photos, or a zip of them; each one's answer as it is done. `index` is its place, `name` its file's.

        Raises ServiceError also when the answer was cut off: what came before is true.
        """
        with tempfile.TemporaryFile() as packed:
            if isinstance(photos, str | os.PathLike):
                names, body = None, _opened(Path(photos))
            else:
                names, body = _pack(photos, packed), packed
            connection = self._connect()
            try:
                answer = connection.request("POST", _path("/v1/batches", {"encoding": "base64", **query}), body)
                ended = False
                for text in _lines(answer):
                    if b'"end":true' in text[:40]:
                        BatchEnd.model_validate_json(text)
                        ended = True
                    else:
                        line = BatchLine.model_validate_json(text)
                        yield line if names is None else line.model_copy(update={"name": names[line.index]})
                if not ended:
                    raise ServiceError("The answer to the batch was cut off.", 0, "cut_off")
            finally:
                connection.close()
                body.close()

    def post_video(self, clip: str | os.PathLike[str], **query: Any) -> Job:
        """A clip as a job. Raises ImageError when there is no such file."""
        with _opened(Path(clip)) as body:
            return Job.model_validate_json(self._connection.content("POST", _path("/v1/videos", query), body))

    def job(self, job: Job | str) -> Job:
        """How far a job is."""
        return Job.model_validate_json(self._connection.content("GET", f"/v1/videos/{_id(job)}"))

    def wait(self, job: Job | str, *, progress: Callable[[Job], None] | None = None) -> Job:
        """The job when it is done. `progress` is told how far it is. Raises ServiceError when it fails."""
        while True:
            state = self.job(job)
            if progress is not None:
                progress(state)
            if state.problem is not None:
                raise ServiceError(state.problem.detail, 0, state.problem.reason)
            if state.status == "done":
                return state
            time.sleep(_POLL_SECONDS)

    def download(self, job: Job, folder: str | os.PathLike[str]) -> list[Path]:
        """The results of a job that is done, into a folder, which is made. Raises ExportError when it cannot be."""
        paths = []
        for file in job.files:
            path = Path(folder) / Path(file.name).name
            with written_atomically(path, create_folder=True) as temporary, open(temporary, "wb") as to:
                for part in self._connection.parts("GET", file.url):
                    to.write(part)
                if to.tell() != file.bytes:
                    raise ServiceError(f"{file.name} was cut off.", 0, "cut_off")
            paths.append(path)
        return paths

    def delete(self, job: Job | str) -> None:
        """Cancel a job, or delete its results."""
        self._connection.content("DELETE", f"/v1/videos/{_id(job)}")

    def stream(self, **options: Any) -> LiveStream:
        """A live stream: hand="auto|right|left", box=(x0, y0, x1, y1) or max_hands=2, vertices="float16|float32",
        smooth=1.
        """
        return LiveStream(self._connection.address, self._connection.headers, options, self._timeout)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _posted(self, photo: Photo, query: dict[str, Any], media_type: str) -> bytes:
        body = _content(photo)
        headers = {"Accept": media_type, "Content-Type": "application/octet-stream"}
        return self._connection.content("POST", _path("/v1/hands", query), body, headers)


def _path(path: str, query: dict[str, Any]) -> str:
    """Booleans as the service writes them; boxes as it does, too."""
    pairs = [(name, _text(one)) for name, value in query.items() if value is not None for one in _each(value)]
    return f"{path}?{urlencode(pairs)}" if pairs else path


def _each(value: Any) -> Sequence[Any]:
    """What is given once, or in a list, a tuple or an array several times. Four numbers are a box, once."""
    if not isinstance(value, list | tuple | np.ndarray):
        return [value]
    return [value] if len(value) and isinstance(value[0], Real) else list(value)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return ",".join(f"{number:.6f}".rstrip("0").rstrip(".") for number in value)
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def _lines(answer: HTTPResponse) -> Iterator[bytes]:
    try:
        yield from answer
    except (OSError, HTTPException) as error:
        raise ServiceError(f"The answer to the batch was cut off: {error}.", 0, "cut_off") from error


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from None


def _content(photo: Photo) -> bytes:
    """A file's bytes as they are; of pixels a PNG, which loses nothing."""
    if isinstance(photo, str | os.PathLike):
        with _opened(Path(photo)) as file:
            return file.read()
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    return encode_image(read_image(photo))


def _pack(photos: Iterable[Photo], file: IO[bytes]) -> list[str]:
    """Photos into a zip, named by their places: their own names, which are returned, may be the same or hidden."""
    names = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, photo in enumerate(photos):
            archive.writestr(str(index), _content(photo))
            names.append(Path(photo).name if isinstance(photo, str | os.PathLike) else str(index))
    file.flush()
    return names
