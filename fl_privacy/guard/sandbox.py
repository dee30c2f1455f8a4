"""What a training worker gives up before it touches private rows: sockets, files, new processes, and more than its share.

It reads its inputs and opens its output first. Then Landlock (Linux 5.13) leaves it no path to write and none to read but the
programs' own, and a seccomp filter takes away sockets of any kind (also the guard's own, which are files), other programs, and
other processes' memory. Neither needs privileges. Where the system lacks one, that is told, never silently passed over.

The processes of one training connect to each other in between: without files, and with sockets for the last time. Landlock
holds for the threads that begin after it, the filter for all; so it is told when a thread (of a GPU's driver) was there before.

What this does not do: a worker runs as the guard's OS user, so without Landlock it could read whatever that user can; and no
sandbox hides how long training takes or how much memory it needs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from fl_privacy.messages import Message

MEMORY = 16 << 30  # bytes of its own; BERT-base needs 4 GiB. At most MEMORY_SHARE of the machine's: swapping would stall all
MEMORY_SHARE = 0.8
CPU_SECONDS = 7 * 24 * 3600  # of all threads; the guard ends a worker that is silent, this one ends a worker without a guard
OPEN_FILES = 256  # training needs the program's libraries and one pipe
FILE_BYTES = 4 << 30  # one float32 update of BERT-large is 1.4 GB
# No RLIMIT_NPROC: it counts all processes of the OS user, guard and datasite included; the filter forbids new ones instead.

READABLE = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"),
    *("/dev/null", "/dev/urandom", "/proc/cpuinfo"),
    *("/sys/devices", "/sys/bus/pci/devices"),  # what hardware there is, which gloo wants to know
)
GPU_FILES = "nvidia*"  # under /dev

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_LANDLOCK_FILES = (13, 14, 15, 15, 16, 16, 16)  # access rights on files, in bits, by ABI version 1, 2, ...
_SCOPES = 0b11  # no abstract Unix sockets and no signals out of the worker (version 6)
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER, _CONTROL_DEVICE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 15

# By architecture: its number in the filter, seccomp, clone, clone3, and what is forbidden: socket, socketpair, connect, bind;
# ptrace, process_vm_readv, process_vm_writev, pidfd_open, pidfd_getfd; execve, execveat, fork, vfork; kill; mount, unshare,
# setns; bpf, perf_event_open, add_key, request_key, keyctl; io_uring_setup (which can open sockets by itself); and what
# Landlock leaves: chmod, fchmod, fchmodat, fchmodat2, chown, fchown, lchown, fchownat
_FILTERS = {
    "x86_64": (
        0xC000003E,
        317,
        56,
        435,
        (41, 53, 42, 49, 101, 310, 311, 434, 438, 59, 322, 57, 58, 62, 165, 272, 308, 321, 298, 248, 249, 250, 425)
        + (90, 91, 268, 452, 92, 93, 94, 260),
    ),
    "aarch64": (
        0xC00000B7,
        277,
        220,
        435,
        (198, 199, 203, 200, 117, 270, 271, 434, 438, 221, 281, 129, 40, 97, 268, 280, 241, 217, 218, 219, 425)
        + (52, 53, 452, 55, 54),
    ),
}
_CLONE_THREAD = 0x10000
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_SET_FILTER, _ALL_THREADS = 1, 1
_EPERM, _ENOSYS = 1, 38


class Isolation(Message):
    """What the worker found when it tried, after giving everything up."""

    network: Literal["isolated", "not isolated"]
    files: Literal["isolated", "not isolated"]

    @property
    def missing(self) -> str:
        """What is not isolated, in words; empty if all is."""
        return " and ".join(part for part, told in self if told != "isolated")


def enter(secret: Path, meet: Callable[[], None] = lambda: None, processes: int = 1, gpu: bool = False) -> Isolation:
    """Give everything up, for good, and try whether it is gone. Call while the process has one thread, a GPU's apart.

    Args: secret is an existing file or folder in the guard's home, which must be out of reach afterwards; meet connects the
        ``processes`` of one training, which share what one would have of the machine's memory; gpu leaves it the GPUs' files.
    """
    _limit(processes)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # no worker outlives the guard
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no core file, and no other process of this user reads its memory
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    has_one_thread = len(list(Path("/proc/self/task").iterdir())) == 1
    _close_files(gpu)
    meet()
    _filter_calls()
    return Isolation(network=_told(not _can_open_socket()), files=_told(has_one_thread and not _can_open(secret)))


def probe(secret: Path) -> Isolation:
    """What a worker on this system would find; tried in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, enter(secret).canonical())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        answer = told.read()
    os.waitpid(child, 0)
    return Isolation.parse(answer)


def _told(gone: bool) -> Literal["isolated", "not isolated"]:
    return "isolated" if gone else "not isolated"


def _can_open_socket() -> bool:
    try:
        socket.socket(socket.AF_INET).close()
        socket.socket(socket.AF_UNIX).close()
    except OSError:
        return False
    return True


def _can_open(secret: Path) -> bool:
    try:
        os.close(os.open(secret, os.O_RDONLY))
    except PermissionError:
        return False
    return True


def _limit(processes: int) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = {
        # RLIMIT_AS counts what torch reserves and never uses
        resource.RLIMIT_DATA: min(MEMORY, int(physical * MEMORY_SHARE / processes)),
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for name, wanted in limits.items():
        hard = resource.getrlimit(name)[1]
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (most, most))


def _readable() -> Iterator[Path]:
    installed = sysconfig.get_paths()
    names = [*READABLE, *(installed[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    yield from {path.resolve() for path in (*map(Path, names), Path(__file__).parents[1]) if path.exists()}


def _close_files(gpu: bool) -> None:
    """Landlock: nothing can be written, removed or run, and only the programs' own files can be read."""
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    handled = (1 << _LANDLOCK_FILES[min(version, len(_LANDLOCK_FILES)) - 1]) - 1
    attributes = struct.pack("QQQ", handled, 0, _SCOPES) if version >= 6 else struct.pack("Q", handled)
    rules = _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return
    for path in _readable():
        _allow(rules, path, _READ_FILE | (_EXECUTE | _READ_FOLDER if path.is_dir() else 0))
    for path in Path("/dev").glob(GPU_FILES) if gpu else ():
        _allow(rules, path, (_READ_FILE | _WRITE_FILE | _CONTROL_DEVICE) & handled)
    _libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, path: Path, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, place), 0)
    os.close(place)


def _filter_calls() -> None:
    """Seccomp, for all threads: the forbidden calls fail with EPERM, and ``clone`` makes threads only."""
    known = _FILTERS.get(platform.machine())
    if known is None:
        return
    architecture, seccomp, clone, clone3, forbidden = known
    deny, unknown = (0x06, 0, 0, _ERROR | _EPERM), (0x06, 0, 0, _ERROR | _ENOSYS)
    load_number, load_flags = (0x20, 0, 0, 0), (0x20, 0, 0, 16)
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), deny, load_number, (0x35, 0, 1, 0x40000000), deny]
    for number in forbidden:
        program += [(0x15, 0, 1, number), deny]
    program += [(0x15, 0, 1, clone3), unknown]  # its flags cannot be seen here; libc falls back to clone
    program += [(0x15, 0, 3, clone), load_flags, (0x45, 1, 0, _CLONE_THREAD), deny, (0x06, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _libc.syscall(seccomp, _SET_FILTER, _ALL_THREADS, filter_)
