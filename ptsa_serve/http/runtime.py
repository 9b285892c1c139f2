"""One loaded model and all that is shared by the requests for it: queue, threads, budgets, state."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from starlette.requests import Request

from ptsa_serve import __version__
from ptsa_serve.errors import EngineError, NotReady, Overloaded, PTSAError, RequestError, ShuttingDown, TooLarge
from ptsa_serve.http.batching import Batcher
from ptsa_serve.http.budget import Lease, Memory, MemoryBudget
from ptsa_serve.http.footprint import footprint
from ptsa_serve.http.metrics import Metrics
from ptsa_serve.http.negotiate import deadline_ms
from ptsa_serve.http.quota import Quota
from ptsa_serve.http.tensors import Infer
from ptsa_serve.http.watch import while_connected, within
from ptsa_serve.http.work import Answer, Served, TensorWork, Work
from ptsa_serve.loading import load_predictor
from ptsa_serve.prediction import Maps, PhotoInfo
from ptsa_serve.predictor import Predictor, Prepared
from ptsa_serve.settings import Settings

__all__ = ["Runtime"]

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["starting", "ready", "draining", "closed"]

# A run that takes this many times the longest allowed request has hung: the process must be replaced.
_HUNG = 3.0


_load_fastest = functools.partial(load_predictor, tune=True)


class _Asked(NamedTuple):
    """What waits in the queue: a photo, and the tasks whose maps are wanted."""

    prepared: Prepared
    tasks: Sequence[str]


class Runtime:
    """Settings, model, queue and state of one server process.

    `start` loads, verifies and warms; until then every photo is refused with `not-ready`. `drain` refuses new photos
    and lets the others finish. All but `start` and `close` belong to one event loop.
    """

    def __init__(self, settings: Settings, load: Callable[[Settings], Predictor] = _load_fastest) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.quota = Quota(settings.quota) if settings.quota else None
        self.state: State = "starting"
        self.model = ""
        self._load = load
        self.memory = Memory(settings.memory_mib * 2**20)
        self._accepted = 0
        self._drained_since: float | None = None

    @property
    def predictor(self) -> Predictor:
        """The loaded model. Raises NotReady before `start` has ended."""
        if self.state == "starting":
            raise NotReady("the model is being loaded and checked; try again after Retry-After", retry_after=2)
        return self._predictor

    def start(self) -> None:
        """Load the model, reproduce its sample, run every size once (as the settings want it), and open the queue.

        Raises:
            PTSAError: with what is wrong; nothing is left running.
        """
        self._predictor = predictor = self._load(self.settings)
        try:
            # With limits of its own: those of the operator are for the photos of clients.
            Predictor(predictor.artifact, predictor.engine).verify()
            # What photos side by side need is made when the first of them come.
            for height, width in tuple(predictor.engine.sizes)[: 1 if self.settings.warm == "first" else None]:
                predictor.engine.run(np.zeros((1, height, width, 3), np.uint8))
        except PTSAError:
            predictor.engine.close()
            raise
        except Exception as error:
            predictor.engine.close()
            raise EngineError(f"the engine {predictor.engine.name!r} failed on the model's sample: {error}") from error
        manifest = predictor.artifact.manifest
        self.model = f"{manifest.name}@{manifest.version}"
        self._pool = ThreadPoolExecutor(self.settings.decoders(), thread_name_prefix="ptsa-image")
        self.batcher = Batcher(
            self._run_batch,
            lanes=predictor.engine.lanes,
            # What may be accepted in all: the thread may not yet have taken those that it runs next.
            limit=self.settings.queue + self.settings.max_batch,
            max_batch=self.settings.max_batch,
            on_run=self._ran,
            on_drop=lambda reason: self.metrics.dropped.labels(reason).inc(),
            on_failure=self.metrics.failures.inc,
        )
        self.metrics.depth.set_function(lambda: self.batcher.depth)
        self.metrics.in_flight.set_function(lambda: self._accepted)
        self.metrics.memory.set_function(lambda: self.memory.held)
        self.metrics.ready.set_function(lambda: float(self.ready()))
        self.metrics.build.labels(__version__, self.model, predictor.engine.name).set(1)
        self.state = "ready"

    def drain(self) -> None:
        """Refuse new photos from now on."""
        if self.state == "ready":
            self.state = "draining"

    def close(self) -> None:
        """Finish what is queued and give threads and engine back. Calling it twice changes nothing."""
        if self.state in ("starting", "closed"):
            return
        self.state = "closed"
        self.batcher.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._predictor.engine.close()

    @property
    def idle(self) -> bool:
        """Whether no photo is accepted and unanswered."""
        return self._accepted == 0

    def ready(self) -> bool:
        """Whether a load balancer should send photos here; an overload alone does not make it False."""
        return self.state == "ready" and not self.batcher.broken and self._drain_age() is None

    def alive(self) -> bool:
        """Whether the process is worth keeping: the engine neither hangs nor fails every time."""
        if self.state != "ready":
            return True
        hung = self.batcher.running_for() * 1000 > _HUNG * self.settings.timeout_ms
        return not hung and not self.batcher.broken

    def info(self) -> dict[str, Any]:
        """What /v1/models shows of the model, with the limits of this server."""
        info = self.predictor.info()
        info["limits"] = {
            **info["limits"],
            "queue": self.settings.queue,
            "timeout_ms": self.settings.timeout_ms,
            "max_batch": self.settings.max_batch,
            "quota": self.settings.quota,
        }
        return info

    def deadline(self, request: Request) -> float:
        """time.monotonic() at which nobody waits any more for `request`. Raises BadParameter."""
        allowed = deadline_ms(request.headers.get("x-deadline-ms"), self.settings.timeout_ms)
        return request.scope.get("state", {}).get("arrived", time.monotonic()) + allowed / 1000

    def check_open(self) -> None:
        """Refuse a photo that cannot be taken now: NotReady, ShuttingDown or Overloaded."""
        age = self._drain_age()
        if self.state in ("draining", "closed") or (age is not None and age >= self.settings.drain_seconds):
            raise ShuttingDown("the server takes no new photos; send it again after Retry-After", retry_after=2)
        if self.state == "starting":
            raise NotReady("the model is being loaded and checked; try again after Retry-After", retry_after=2)
        allowed = self.settings.queue + self.settings.max_batch
        if self._accepted >= allowed:
            raise Overloaded(
                f"{allowed} photos are being worked on, as many as may; send it again after Retry-After",
                retry_after=self.batcher.retry_after(),
            )

    async def serve(self, work: Work) -> Served:
        """Answer one photo.

        Raises:
            RequestError: any of the contract's. ClientDisconnect: nobody is there to answer.
        """
        with self._accept():
            async with within(work.deadline):
                return await self._serve(work)

    async def serve_tensors(self, work: TensorWork) -> tuple[Infer, Maps]:
        """Answer tensors at one of the model's sizes with its maps, (N, H, W...) by task; raises as `serve`."""
        with self._accept():
            async with within(work.deadline):
                body = await self.hold(work.held, self.memory.bodies, work.size_hint)
                data = await work.read()
                infer = await self.in_pool(lambda: work.parse(data), body)
                if len(infer.images) > self.settings.queue:
                    raise TooLarge(
                        f"the batch has {len(infer.images)} images, {self.settings.queue} may wait; send fewer at once"
                    )
                wanted = infer.images[..., 0].size * work.bytes_per_pixel(infer)
                await while_connected(work.receive, self.hold(work.held, self.memory.photos(wanted), wanted))
                return infer, await while_connected(work.receive, self._run_images(infer, work.deadline))

    async def hold(self, held: ExitStack, budget: MemoryBudget, wanted: int) -> Lease:
        """`wanted` bytes of `budget`, until `held` is closed."""
        lease = await budget.lease(wanted)
        held.callback(lease.release)
        return lease

    async def _run_images(self, infer: Infer, deadline: float) -> Maps:
        height, width = infer.images.shape[1:3]
        photo = PhotoInfo(width, height)
        asked = [_Asked(Prepared(pixels, (height, width), photo, 0.0), infer.outputs) for pixels in infer.images]
        try:
            async with asyncio.TaskGroup() as group:
                jobs = [self.batcher.submit(each, key=(height, width), deadline=deadline) for each in asked]
                tasks = [group.create_task(job) for job in jobs]
        except* RequestError as errors:
            # One answer for the whole batch: that of its first failure.
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        ran = [task.result().result for task in tasks]
        return {name: np.stack([maps[name] for maps in ran]) for name in infer.outputs}

    async def _serve(self, work: Work) -> Served:
        body = await self.hold(work.held, self.memory.bodies, work.size_hint)
        return await while_connected(work.receive, self._answer(await work.read(), body, work))

    async def _answer(self, data: bytes, body: Lease, work: Work) -> Served:
        prepared, lease = await self._decode(data, body, work)
        del data
        body.release()
        return await self._compute(prepared, lease, work)

    async def _decode(self, data: bytes, body: Lease, work: Work) -> tuple[Prepared, Lease]:
        photo = await self.in_pool(lambda: self._predictor.open(data, work.deadline), body)
        pixels = photo.header.width * photo.header.height
        self.metrics.pixels.observe(pixels)
        model = self._predictor.engine.sizes.most_pixels
        wanted = footprint(pixels, model, whole=work.size == "photo", kept=work.keep_image)
        lease = await self.hold(work.held, self.memory.photos(wanted), wanted)
        prepare = functools.partial(self._predictor.prepare, photo, keep_image=work.keep_image)
        return await self.in_pool(prepare, body, lease), lease

    async def _compute(self, prepared: Prepared, lease: Lease, work: Work) -> Served:
        ran = await self.batcher.submit(_Asked(prepared, work.tasks), key=prepared.size, deadline=work.deadline)
        timings = {"decode": prepared.decode_ms, "queue": ran.queue_ms, "model": ran.model_ms}

        def render() -> Answer:
            prediction = self._predictor.finish(prepared, ran.result, work.tasks, work.size, lazily=True)
            return work.render(replace(prediction, timings_ms={**prediction.timings_ms, **timings}), prepared)

        started = time.perf_counter()
        value = await self.in_pool(render, lease)
        timings["encode"] = (time.perf_counter() - started) * 1000
        if not isinstance(value, Iterator):
            lease.shrink(sum(len(piece) for piece in value))
        for stage, milliseconds in timings.items():
            self.metrics.stages.labels(stage).observe(milliseconds / 1000)
        return Served(value, prepared.photo, timings)

    def _run_batch(self, asked: Sequence[_Asked], alone: bool) -> list[Maps]:
        """Of photos of one size; each gets at least the maps that were asked for with it."""
        wanted = self._predictor.choose([task for each in asked for task in each.tasks])
        return self._predictor.run([each.prepared for each in asked], wanted, alone=alone)

    async def in_pool(self, call: Callable[[], T], *leases: Lease) -> T:
        """Run `call` on a thread for images, off the event loop; `leases` are what it uses."""
        future = self._pool.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            for lease in leases:
                lease.outlive(future)
            raise

    @contextmanager
    def _accept(self) -> Iterator[None]:
        """Count one photo from before its body is read until its answer is made; refuse it when too many are in."""
        self.check_open()
        self._accepted += 1
        try:
            yield
        finally:
            self._accepted -= 1

    def _drain_age(self) -> float | None:
        """Seconds since the drain file was first seen; None while there is none."""
        path = self.settings.drain_file
        if path is None or not path.exists():
            self._drained_since = None
            return None
        if self._drained_since is None:
            self._drained_since = time.monotonic()
        return time.monotonic() - self._drained_since

    def _ran(self, seconds: float, items: int) -> None:
        log.debug("ran %d photos in %.1f ms", items, seconds * 1000)
        self.metrics.batch.observe(items)
