"""Every setting of the service, its default and why. Each is also a variable: `queue_size` is HANDMESH_QUEUE_SIZE."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from handmesh.errors import ConfigError
from handmesh.system.cpus import MAX_THREADS, default_threads
from handmesh_server.tokens import checked_token, read_tokens

PREFIX: Final = "HANDMESH_"

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseModel):
    """Frozen; an unknown name or a wrong type is a ConfigError from `from_environment`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Where and to whom
    host: str = "127.0.0.1"  # anything else is public and wants a token, or `insecure`
    port: int = Field(8000, ge=0, le=65535)  # 0: any free port, told in the log
    token: SecretStr | None = None  # clients send it as `Authorization: Bearer ...`
    token_file: Path | None = None  # tokens as a mounted secret, "name: token" a line; read again when it changes
    insecure: bool = False  # public without a token: behind a proxy that authenticates
    cors_origins: tuple[str, ...] = ()  # web pages of these origins may call; "*" for all of them

    # What computes
    model: str | None = None  # a model file; None: the bundled model
    passes: int = Field(3, ge=1, le=10)  # crops of each hand; see handmesh.predict.Predictor
    threads: int | None = Field(None, ge=1, le=MAX_THREADS)  # of the network; None: one for each usable core
    max_batch: int | None = Field(None, ge=1, le=1024)  # crops; None: 16 on CUDA, and 1 on a CPU, which gains nothing

    workers: int = Field(1, ge=1, le=256)  # processes; each has its part of the processors, and of what follows

    # How much at once
    queue_size: int = Field(64, ge=1, le=4096)  # hands waiting or in work; more are answered 429
    client_queue_size: int | None = Field(None, ge=1)  # of one client; None: all, but where tokens have names 3/4
    deadline_seconds: Seconds = 10.0  # from the end of the upload to the answer; then 504
    max_body_bytes: int = Field(24 * 2**20, ge=1024)  # a 48-megapixel phone photograph has about 20 MB
    max_pixels: int = Field(50_000_000, ge=1024)  # the same photograph: 8064 x 6048
    memory_bytes: int = Field(2 * 2**30, ge=2**20)  # of uploads and pixels of all requests together
    max_connections: int = Field(1000, ge=1)
    client_connections: int | None = Field(None, ge=1)  # of one address that ask nothing; None: a quarter of all

    # Live: /v1/stream
    max_streams: int = Field(16, ge=0, le=1000)  # connections at a time; each can keep the model busy on its own
    stream_frame_bytes: int = Field(2 * 2**20, ge=1024)  # a 1920 x 1080 JPEG of good quality has about 0.6 MB
    stream_idle_seconds: Seconds = 30.0  # without a frame, and the place is given to others

    # Many photos at once: /v1/batches
    max_batch_photos: int = Field(1000, ge=1, le=100_000)  # in one request
    max_batches: int = Field(4, ge=0, le=1000)  # in work at a time; more are answered 429, and 0 refuses all
    max_upload_bytes: int = Field(2**30, ge=1024)  # of a batch or a clip; on the disk, not in memory
    upload_seconds: Seconds = 600.0  # for such an upload

    # Clips as jobs: /v1/videos
    jobs_dir: Path | None = None  # None: a folder in the user's cache; it is made with the first clip
    jobs_redis: SecretStr | None = None  # redis://host:port/database, where several machines share jobs_dir
    job_workers: int = Field(1, ge=0, le=64)  # clips at a time on this machine; 0: this service only takes them
    max_jobs: int = Field(100, ge=0, le=10_000)  # being sent, waiting or in work; more are answered 429; 0 refuses all
    jobs_bytes: int = Field(10 * 2**30, ge=2**20)  # of all clips and results together
    job_keep_seconds: float = Field(86_400.0, gt=0)  # after its end, then results are deleted
    job_seconds: float = Field(3600.0, gt=0)  # for the work on one clip, in all attempts together
    job_memory_bytes: int = Field(4 * 2**30, ge=2**28)  # of the process that works on it
    job_nice: int = Field(5, ge=0, le=19)  # how far it steps back behind photos; 19 may wait for ever
    max_clip_frames: int = Field(20_000, ge=1)  # 11 minutes at 30 frames/s
    max_clip_pixels: int = Field(4096 * 2304, ge=1024)  # of a picture

    # How long we wait for others
    header_seconds: Seconds = 10.0  # for a client to say what it wants
    body_seconds: Seconds = 30.0  # for an upload
    write_seconds: Seconds = 30.0  # for a client to read on
    drain_seconds: float = Field(1.0, ge=0, le=600)  # after SIGTERM: answer 503, so that balancers look elsewhere
    grace_seconds: Seconds = 20.0  # then: for requests in work to finish
    hang_seconds: Seconds = 30.0  # of a worker in one photo, or deaf: it is replaced
    worker_memory_bytes: int | None = Field(None, ge=2**28)  # None: 2 GiB and its part of memory_bytes; then replaced

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from HANDMESH_... variables; an override that is not None wins. Raises ConfigError."""
        variables = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for name in cls.model_fields:
            text = variables.get(PREFIX + name.upper(), "")
            if text.strip():
                parts = [part.strip() for part in text.split(",") if part.strip()]
                values[name] = parts if name == "cors_origins" else text.strip()
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            settings = cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            found = "" if name == "token" else f" is {values.get(name)!r}"
            hint = ""
            if name == "port" and str(values.get(name)).startswith("tcp:"):
                hint = " Kubernetes sets this for a Service called handmesh: use enableServiceLinks: false."
            raise ConfigError(f"Setting {name} ({PREFIX}{name.upper()}){found}: {first['msg']}.{hint}") from None
        return settings.checked()

    def checked(self) -> Settings:
        """With a token, or a file of them, that is one, and origins as browsers name them. Raises ConfigError."""
        for origin in self.cors_origins:
            if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+", origin):
                raise ConfigError(
                    f"Setting cors_origins ({PREFIX}CORS_ORIGINS) has {origin!r}, which no browser sends: wanted "
                    "scheme and host in small letters, and nothing behind them, such as https://app.example.org; or *."
                )
        if self.token is not None and self.token_file is not None:
            raise ConfigError("token and token_file say the same thing in two ways: give one of them.")
        if self.token_file is not None:
            read_tokens(self.token_file)
        if self.token is None:
            return self
        return self.model_copy(update={"token": SecretStr(checked_token(self.token.get_secret_value()))})

    @property
    def wants_token(self) -> bool:
        """Whether clients have to show one."""
        return self.token is not None or self.token_file is not None

    @property
    def worker_memory(self) -> int:
        """Bytes that one worker may have."""
        return self.worker_memory_bytes or 2**31 + self.memory_bytes // self.workers

    def of_a_worker(self, index: int) -> Settings:
        """What one of the workers is given, so that all together have what is set here."""

        def part(total: int) -> int:
            return -(-total // self.workers)

        return self.model_copy(
            update={
                "threads": max(1, (self.threads or default_threads()) // self.workers),
                "queue_size": part(self.queue_size),
                "client_queue_size": self.client_queue_size and part(self.client_queue_size),
                "memory_bytes": part(self.memory_bytes),
                "max_connections": part(self.max_connections),
                "client_connections": self.client_connections and part(self.client_connections),
                "max_streams": part(self.max_streams),
                "max_batches": part(self.max_batches),
                "job_workers": self.job_workers // self.workers + (index < self.job_workers % self.workers),
            }
        )

    @property
    def is_local(self) -> bool:
        """For this machine alone, and nobody has to show a token."""
        return not self.wants_token and not self.insecure and _is_loopback(self.host)

    def check_exposure(self) -> None:
        """Raises ConfigError when strangers could use the service."""
        if not self.wants_token and not self.insecure and not _is_loopback(self.host):
            raise ConfigError(
                f"Host {self.host} can be reached from other machines, and there is no token. Set {PREFIX}TOKEN (make "
                f"one with: openssl rand -hex 24), or bind 127.0.0.1, or say --insecure ({PREFIX}INSECURE=1) when a "
                "proxy in front asks who calls."
            )


def cannot_listen(settings: Settings, why: str = "") -> ConfigError:
    """The error of an address that is not to be had."""
    return ConfigError(
        f"Cannot listen on {settings.host}, port {settings.port}{f' ({why})' if why else ''}: is another program using "
        f"it? Choose another with --port ({PREFIX}PORT)."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
