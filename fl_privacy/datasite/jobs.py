"""How jobs run: one fresh process each, started by a fork server, watched and ended by the datasite's own process.

Stock forks a server full of threads (jobs deadlock), sends the server's private key with every job over a TCP port that listens
on all interfaces, and lets a thread inside the job decide whether the job is to end.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import syft.service.worker.utils
from syft.serde.deserialize import _deserialize as deserialize
from syft.serde.serialize import _serialize as serialize
from syft.server.credentials import SyftSigningKey
from syft.server.server import ServerRegistry
from syft.server.worker_settings import WorkerSettings
from syft.service.job.job_service import JobService
from syft.service.job.job_stash import JobStatus
from syft.service.queue import queue
from syft.service.queue.queue_stash import Status
from syft.service.queue.zmq_producer import ZMQProducer
from syft.service.response import SyftError, SyftSuccess
from syft.store.db.sqlite import SQLiteDBConfig
from syft.types.datetime import DateTime
from syft.types.errors import SyftException

KILL_SECONDS = 10.0  # how long a caller waits for a killed job to be gone
_running: dict[Any, multiprocessing.process.BaseProcess] = {}  # job id -> its process
_full_settings = WorkerSettings.from_server  # with the private key; never leaves this process but for a job's own pipe


def install(prepare: Callable[[], None]) -> None:
    """Run this process's jobs as described above; call before ``app_factory()``.

    Args: prepare hardens a job's process before it reads anything; it must be importable there (pickled by name).
    """
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload([__name__, *_module_of(prepare)])
    forkserver.ensure_running()  # imports Syft beside this process's own start, not at the first job
    queue.APICallMessageHandler.handle_message = staticmethod(functools.partial(_handle_message, start, prepare))
    WorkerSettings.from_server = classmethod(_settings_without_secrets)
    JobService._kill = _kill
    _listen_on_private_socket()


def _module_of(prepare: Callable[[], None]) -> list[str]:
    return [getattr(prepare, "func", prepare).__module__]


def _listen_on_private_socket() -> None:
    """Replace the queue's TCP port (hole 3) by a Unix socket in a folder that only this OS user can enter."""
    folder = tempfile.TemporaryDirectory(prefix="fl_privacy_queue_")  # mode 0700; a short path, sockets allow 107 bytes
    address = f"ipc://{Path(folder.name) / 'queue'}"

    def bind(self: ZMQProducer, endpoint: str) -> None:
        self.folder = folder  # kept as long as the socket, then removed
        self.socket.bind(address)

    ZMQProducer.bind = bind
    ZMQProducer.address = property(lambda self: address)
    syft.service.worker.utils.get_queue_address = lambda port: address


def _settings_without_secrets(cls: type[WorkerSettings], server: Any) -> WorkerSettings:
    """Settings as they are stored and queued: a fresh key that opens nothing, and no database address (holes 2 and 3)."""
    settings = _full_settings(server)
    settings.signing_key = SyftSigningKey.generate()
    settings.db_config = SQLiteDBConfig(filename="withheld", path=Path())
    return settings


def _handle_message(start: Any, prepare: Callable[[], None], message: bytes, syft_worker_id: Any) -> None:
    """Run one queued job to its end, in the consumer's thread."""
    item = deserialize(message, from_bytes=True)
    server, credentials = ServerRegistry.server_for(item.server_uid), item.syft_client_verify_key
    job = server.job_stash.get_by_uid(credentials, item.job_id).unwrap()
    item.status = Status.PROCESSING
    server.queue_stash.set_result(credentials, item).unwrap()
    process = start.Process(target=_run, args=(prepare, serialize(_full_settings(server), to_bytes=True), message))
    process.start()
    _running[job.id] = process
    job.status, job.job_pid, job.updated_at = JobStatus.PROCESSING, process.pid, DateTime.now()
    job.server_uid, job.job_worker_id = server.id, syft_worker_id
    server.job_stash.set_result(credentials, job).unwrap()  # the job's own first write comes half a second later
    process.join()
    del _running[job.id]
    _settle(server, credentials, item)


def _run(prepare: Callable[[], None], settings: bytes, message: bytes) -> None:
    """The job's process: harden first, then execute as stock does."""
    prepare()
    WorkerSettings.from_server = classmethod(_settings_without_secrets)  # for the jobs that this job may start
    queue.MonitorThread.run = lambda self: None  # it held the process, and so a worker, for up to 5 s after the job
    item = deserialize(message, from_bytes=True)
    queue.handle_message_multiprocessing(deserialize(settings, from_bytes=True), item, item.syft_client_verify_key)


def _settle(server: Any, credentials: Any, item: Any) -> None:
    """Close the books on a job whose process is gone: stock leaves a killed or crashed one "processing" for ever."""
    job = server.job_stash.get_by_uid(credentials, item.job_id).unwrap()
    if job.resolved:
        return
    killed = job.status == JobStatus.TERMINATING
    item.status, job.status = (Status.INTERRUPTED, JobStatus.INTERRUPTED) if killed else (Status.ERRORED, JobStatus.ERRORED)
    job.result = SyftError(message="the job was killed" if killed else "the job's process ended without a result")
    item.resolved = job.resolved = True
    server.queue_stash.set_result(credentials, item).unwrap()
    server.job_stash.set_result(credentials, job).unwrap()


def _kill(self: JobService, context: Any, job: Any) -> SyftSuccess:
    """End the process of a job and of the jobs that it started; stock asks the job to end itself, and then fails to wait."""
    ended = [job, *self.stash.get_by_parent_id(context.credentials, uid=job.id).unwrap()]
    for one in ended:
        one.status = JobStatus.TERMINATING
        self.stash.update(context.credentials, obj=one).unwrap()
        if one.id in _running:
            _running[one.id].kill()
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        if self.stash.get_by_uid(context.credentials, uid=job.id).unwrap().status == JobStatus.INTERRUPTED:
            return SyftSuccess(message="the job was killed")
        time.sleep(0.1)
    raise SyftException(public_message="the job could not be killed")
