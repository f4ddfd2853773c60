"""The web application: routes of the OpenAI API over engines. Everything slow happens off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from adaptprune._version import __version__
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.jobs import Delta, Done, Event, Failed, Job
from adaptprune.engines.errors import EngineError, from_exception
from adaptprune.methods import list_methods
from adaptprune.models import notice
from adaptprune.prompts import WORKERS
from adaptprune.registry import did_you_mean
from adaptprune.serve import asks, pictures
from adaptprune.serve.answers import END, Writer, joined, sse
from adaptprune.serve.describe import describe
from adaptprune.serve.errors import ServeError, error_object, status_of
from adaptprune.serve.guard import Guard, GuardLimits, Keys
from adaptprune.serve.metrics import Metrics
from adaptprune.serve.parsing import parse
from adaptprune.serve.pictures import ImageLimits
from adaptprune.serve.schemas import ChatRequest

T = TypeVar("T")
#: Seconds of one forward that /health mentions.
LONG = 5.0
SMALL = 20_000  # bytes of JSON that are parsed in some milliseconds, whatever they are


@dataclass(frozen=True)
class Settings:
    """How the application is protected; see `Guard` for `hosts`."""

    keys: Keys = field(default_factory=lambda: Keys(()))
    hosts: tuple[str, ...] | None = None
    images: ImageLimits = field(default_factory=ImageLimits)
    guard: GuardLimits = field(default_factory=GuardLimits)


class Service:
    """Answers chat requests. What `create_app` wires to routes.

    Parameters
    ----------
    engines : mapping of str to Engine
        Model names to started engines.
    images : ImageLimits
    """

    def __init__(self, engines: Mapping[str, Engine], images: ImageLimits) -> None:
        self.engines, self._images = engines, images
        self.metrics = Metrics(engines)
        self.started = int(time.time())
        self.draining = False
        # decoding images and building inputs; few threads, because each may hold large pictures
        self._preparers = ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare")

    async def answer(self, request: Request) -> Response:
        """One chat completion, streamed or whole."""
        body = await request.body()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # also what keeps a web page from posting here without asking the browser's permission first
            raise ServeError(415, "unsupported_media_type", "send the request as application/json.")
        ask = parse(body) if len(body) < SMALL else await asyncio.to_thread(parse, body)
        engine = self.engine(ask.model)
        request.state.model = engine.name  # for the metrics, should this request fail
        try:
            return await self._answer(request, ask, engine)
        except _Gone:
            self.metrics.refused(engine.name, "client_left")
            return Response(status_code=499)  # nobody is there to read it

    def engine(self, name: str) -> Engine:
        """The engine of a model."""
        if name not in self.engines:
            message = f"unknown model {name[:200]!r}.{did_you_mean(name[:200], self.engines)}"
            raise ServeError(404, "model_not_found", message, param="model")
        return self.engines[name]

    def health(self) -> tuple[str, dict[str, str]]:
        """ "ok", "hung" or "dead", and by the names of engines why, or what they have been doing for a while."""
        status, doing = "ok", {}
        for name, engine in self.engines.items():
            under_way = engine.watch.doing
            if not engine.alive:
                status, doing[name] = "dead", "its thread has ended"
            elif under_way is not None and engine.watch.seconds > LONG:
                doing[name] = f"{under_way[0]} for {engine.watch.seconds:.0f} s"
                status = "hung" if engine.hung and status == "ok" else status
        return status, doing

    async def _answer(self, request: Request, ask: ChatRequest, engine: Engine) -> Response:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:  # called by the engine's thread
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = engine.open(
            asks.sampling(ask),
            asks.pruner(ask, engine),
            tell,
            timeout=ask.timeout,
            want_kept=ask.pruning is not None and ask.pruning.return_kept,
            want_overlay=ask.pruning is not None and ask.pruning.return_overlay,
        )
        streaming = False
        try:
            first = await _unless_gone(request, self._begin(engine, job, ask, events))
            if isinstance(first, Failed):
                raise first.error
            writer = Writer(ask.model, bool(ask.logprobs))
            if ask.stream:
                streaming = True
                include = bool(ask.stream_options and ask.stream_options.include_usage)
                return _Stream(self, engine, job, self._chunks(engine, writer, ask, first, events, include))
            return JSONResponse(await _unless_gone(request, self._whole(engine, writer, job, first, events)))
        finally:
            if not streaming:
                engine.cancel(job)  # harmless once it has finished

    async def _begin(self, engine: Engine, job: Job, ask: ChatRequest, events: asyncio.Queue[Event]) -> Event:
        """Prepare and queue a request; its first event, so that a refusal still has its own HTTP status."""
        asks.check(ask, self._images, engine)
        encoded = [(await pictures.read(url, self._images, name), name) for url, name in asks.image_urls(ask)]

        def prepare() -> None:
            engine.submit(job, asks.turns(ask, pictures.decode(encoded, self._images)))

        await asyncio.get_running_loop().run_in_executor(self._preparers, prepare)
        return await events.get()

    async def _whole(
        self, engine: Engine, writer: Writer, job: Job, event: Event, events: asyncio.Queue[Event]
    ) -> dict[str, Any]:
        pieces: list[list[Delta]] = [[] for _ in range(job.sampling.n)]
        while isinstance(event, Delta):
            pieces[event.index].append(event)
            event = await events.get()
        if isinstance(event, Failed):
            raise event.error
        self.metrics.answered(engine.name, event.usage)
        deltas = [joined(choice) for choice in pieces]
        return await _built(event, lambda: writer.whole(deltas, event))

    async def _chunks(
        self, engine: Engine, writer: Writer, ask: ChatRequest, event: Event, events: asyncio.Queue[Event], usage: bool
    ) -> AsyncIterator[bytes]:
        for index in range(ask.n or 1):
            yield writer.begin(index)
        while isinstance(event, Delta):
            yield writer.delta(event)
            event = await events.get()
        if isinstance(event, Failed):
            self.metrics.refused(engine.name, event.error.code)
            yield sse(error_object(event.error))  # no [DONE]: the answer is not complete
            return
        self.metrics.answered(engine.name, event.usage)
        if usage:
            yield await _built(event, lambda: writer.usage(event))
        yield END


class _Stream(StreamingResponse):
    """Server-sent events; the request is given up as soon as its client is gone."""

    def __init__(self, service: Service, engine: Engine, job: Job, chunks: AsyncIterator[bytes]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._service, self._engine, self._job = service, engine, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._job.closed:
                self._service.metrics.refused(self._engine.name, "client_left")
                self._engine.cancel(self._job)


class _Gone(Exception):
    """The client left."""


async def _built(event: Done, build: Callable[[], T]) -> T:
    """What `build` makes; off the event loop if a picture has to be encoded."""
    return build() if event.overlay is None else await asyncio.to_thread(build)


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of `work`; _Gone if the client leaves first."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Gone
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(engines: Mapping[str, Engine], settings: Settings | None = None) -> FastAPI:
    """The application.

    Parameters
    ----------
    engines : mapping of str to Engine
        Model names to started engines.
    settings : Settings, optional

    Returns
    -------
    FastAPI
        Its `state.service` is the `Service`.
    """
    settings = settings or Settings()
    service = Service(engines, settings.images)
    app = FastAPI(title="adaptprune", version=__version__, redoc_url=None)
    app.state.service = service
    app.add_middleware(
        Guard, keys=settings.keys, hosts=settings.hosts, limits=settings.guard, refused=service.metrics.refused
    )
    _add_errors(app, service.metrics)

    async def chat(request: Request) -> Response:
        """Answer a conversation with text and images."""
        return await service.answer(request)

    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [_model(service, name) for name in service.engines]}

    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return _model(service, service.engine(name).name)

    async def health() -> JSONResponse:
        """Whether the engines run, and what keeps one busy for longer than a moment."""
        status, doing = service.health()
        return JSONResponse({"status": status, **({"engines": doing} if doing else {})}, 200 if status == "ok" else 503)

    async def ready() -> JSONResponse:
        """Whether requests are taken: the engines run and the server is not shutting down."""
        fine = not service.draining and service.health()[0] == "ok"
        return JSONResponse({"status": "ready" if fine else "not ready"}, 200 if fine else 503)

    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app.post("/v1/chat/completions")(chat)
    app.get("/v1/models")(models)
    app.get("/v1/models/{name:path}")(model)
    app.get("/health")(health)
    app.get("/ready")(ready)
    app.get("/metrics")(metrics)
    describe(app)
    return app


def _model(service: Service, name: str) -> dict[str, Any]:
    engine = service.engines[name]
    said = notice(engine.model)
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "adaptprune",
        "max_model_len": engine.context,
        "pruning": {"default": engine.pruner.spec() if engine.pruner else "none", "methods": list_methods()},
        **({"notice": said} if said else {}),
    }


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    def show(request: Request, error: EngineError, headers: Mapping[str, str] | None = None) -> JSONResponse:
        metrics.refused(getattr(request.state, "model", ""), error.code)
        more = dict(headers or {})
        if error.retry_after is not None:
            more["Retry-After"] = str(error.retry_after)
        if status_of(error) in (408, 413):
            more["Connection"] = "close"
        return JSONResponse(error_object(error), status_of(error), more)

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return show(request, from_exception(error))

    async def theirs(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, (HTTPException, StarletteHTTPException))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method[:20]} {request.url.path[:200]}: {error.detail}."
        return show(request, ServeError(error.status_code, code, message), error.headers)

    app.exception_handler(EngineError)(ours)
    app.exception_handler(StarletteHTTPException)(theirs)
