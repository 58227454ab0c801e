"""A step in namespaces of its own, made by bubblewrap, as root and as an ordinary user.

The step sees the host's programs and libraries, a root directory, a `/tmp` and a home of its own, no process but
its own, and the host's network. It may write anywhere: each directory of the host lies under a private upper layer
(an overlay of `/` as a whole is refused in a user namespace, single directories are allowed), so that nothing of it
reaches the host or another step, and all of it can be collected from `home` afterwards:

    home/root/            the private root: /output.txt, /outputs, /tmp, …
    home/layers/usr/      what the step changed below /usr, and so on
    home/work/usr/        overlayfs' own scratch

The server's data, and so every other step's tree, is masked; its environment is never passed on; people's homes are
not there unless a setting says so. As root the step keeps the capabilities a container engine gives, not those that
could undo a mount or make a device.

Every directory costs one mount and its removal, about 0.4 ms: empty and unreadable ones are not laid over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.run.engine.embedded.runtime import (
    MAIN,
    CannotStart,
    Ended,
    Process,
    Running,
    StepSpec,
    processes_of,
)
from services.run.engine.embedded.runtime import process as processes
from services.run.engine.embedded.runtime import tree as trees
from services.run.engine.embedded.runtime.limits import Bound, Keeper
from services.run.engine.embedded.runtime.placing import mounted, place
from services.run.engine.embedded.runtime.tree import Branch, OutsideTree, Tree

SHIMS = "/.step/bin"
"""Where a step finds our `python`, `python3` and `sh`, first in its PATH."""

HOME = "/root"

_LINKED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Top-level names that are links into /usr on merged systems and directories on others."""

_ROOT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""What container engines leave to root, without CAP_MKNOD: overlays would honour a device made in them."""

_KERNEL_SWITCHES = ("/proc/sys", "/proc/sysrq-trigger", "/proc/fs")

_EXEC_FAILED = re.compile(rb"^bwrap: execvp (?P<program>.*): (?P<reason>[^:\n]+)$", re.MULTILINE)


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """What of the host a step sees."""

    overlaid: tuple[str, ...]
    """Directories under a private upper layer."""
    bound: tuple[str, ...] = ()
    """Directories that this machine does not let us overlay: read-only."""
    linked: tuple[tuple[str, str], ...] = ()
    """Top-level symlinks: (target, path)."""


class Sandbox:
    """The runtime that bubblewrap makes.

    `shims` is a host directory with the programs of SHIMS; `environment` is what every step has beside our own.
    """

    name = "bubblewrap"

    def __init__(
        self,
        *,
        bubblewrap: str,
        view: HostView,
        shims: Path,
        path: str,
        masked: tuple[str, ...],
        environment: Mapping[str, str],
        limits: Keeper | None,
    ) -> None:
        self._bubblewrap = bubblewrap
        self._view = view
        self._shims = shims
        own = {"PATH": path, "HOME": HOME, "LANG": "C.UTF-8", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
        self._environment = {**own, **environment}
        self._masked = masked
        self._limits = limits
        self._bash = shutil.which("bash", path="/usr/local/bin:/usr/bin:/bin")
        self._sh = os.path.realpath("/bin") + "/sh"
        self._modes = {directory: stat.S_IMODE(os.stat(directory).st_mode) for directory in view.overlaid}

    def lay_out(self, spec: StepSpec, name: str, home: Path) -> Tree:
        return Tree(
            branches=(
                Branch(target="/", source=str(home / "root")),
                *(
                    Branch(target=directory, source=str(home / "layers" / _flat(directory)), lower=directory)
                    for directory in self._view.overlaid
                ),
                *(
                    Branch(target=directory, source=directory, lower=directory, read_only=True)
                    for directory in self._view.bound
                ),
                *(mounted(mount) for mount in processes_of(spec)[name].mounts),
            )
        )

    def prepare(self, spec: StepSpec, name: str, home: Path, tree: Tree) -> None:
        # This is on every step's way: plain calls, a few microseconds each.
        at = str(home)
        if name != MAIN:
            os.mkdir(at, 0o700)
        for made in ("/root", "/layers", "/work", "/root/.step", "/root/sys", "/root/run", "/root/tmp"):
            os.mkdir(at + made)
        os.mkdir(at + "/root" + HOME, 0o700)
        os.chmod(at + "/root/tmp", 0o1777)  # noqa: S103 (as every /tmp is)
        for directory in self._view.overlaid:
            flat = _flat(directory)
            os.mkdir(f"{at}/work/{flat}")
            # The merged directory shows the upper one's mode.
            os.mkdir(f"{at}/layers/{flat}", self._modes[directory])
        self._put_bash_at_sh(tree)
        if name == MAIN:
            place(spec, tree)

    def first_line(self, spec: StepSpec) -> str:
        image = spec.main.image
        return f"headrace: this step runs as a process; its image {image} is not used" if image else ""

    def start(
        self,
        process: Process,
        home: Path,
        tree: Tree,
        log: int,
        *,
        stdout: int | None = None,
        outputs: tuple[str, ...] = (),
    ) -> Running:
        if process.runs_entrypoint:
            raise CannotStart(f"image entrypoint unknown: {process.image}")
        if not process.argv:
            raise CannotStart("no command")
        with contextlib.suppress(OutsideTree, OSError):  # bubblewrap says best why a directory is none
            trees.make_directory(tree, process.cwd or "/")
        bound = self._bound(process)
        arguments = self._arguments(process, home, tree)
        started_at_byte = os.fstat(log).st_size
        told = os.memfd_create("bwrap-arguments", os.MFD_CLOEXEC)
        status_read, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.write(told, b"\0".join(argument.encode() for argument in arguments) + b"\0")
            os.lseek(told, 0, os.SEEK_SET)
            command = (
                *(() if bound is None else bound.words),
                self._bubblewrap,
                *("--args", str(told), "--json-status-fd", str(status_write), "--"),
                *process.argv,
            )
            # Its environment and its arguments can be read by the step (/proc/1): they hold nothing of ours.
            pid = processes.spawn(command, env={}, cwd="/", log=log, stdout=stdout, keep=(told, status_write))
        except (OSError, ValueError) as error:
            os.close(status_read)
            if bound is not None:
                bound.ended()
            raise CannotStart(str(error)) from error
        finally:
            os.close(told)
            os.close(status_write)
        return _Sandboxed(pid, status_read, log, started_at_byte, bound)

    def close(self) -> None:
        if self._limits is not None:
            self._limits.close()

    def _bound(self, process: Process) -> Bound | None:
        try:
            return None if self._limits is None else self._limits.bound(process)
        except OSError as error:
            raise CannotStart(f"its limits cannot be kept: {error.strerror}") from error

    def _arguments(self, process: Process, home: Path, tree: Tree) -> list[str]:
        """What bubblewrap is told, in the order in which it mounts."""
        told = ["--unshare-pid", "--unshare-ipc", "--die-with-parent"]
        if os.getuid() == 0:
            told += ["--cap-drop", "ALL"]
            for capability in _ROOT_CAPABILITIES:
                told += ["--cap-add", capability]
        told += ["--bind", str(home / "root"), "/"]
        for target, path in self._view.linked:
            told += ["--symlink", target, path]
        for directory in self._view.overlaid:
            flat = _flat(directory)
            told += ["--overlay-src", directory]
            told += ["--overlay", str(home / "layers" / flat), str(home / "work" / flat), directory]
        for directory in self._view.bound:
            told += ["--ro-bind", directory, directory]
        for masked in self._masked:
            told += self._mask(masked)
        told += ["--dev", "/dev", "--proc", "/proc", "--ro-bind-try", "/sys/devices/system", "/sys/devices/system"]
        if os.getuid() == 0:
            # Root may write to these whatever its capabilities, and they are the whole machine's.
            for kernel in _KERNEL_SWITCHES:
                told += ["--ro-bind-try", kernel, kernel]
        resolver = os.path.realpath("/etc/resolv.conf")
        if resolver.startswith("/run/"):
            told += ["--ro-bind-try", resolver, resolver]
        told += ["--ro-bind", str(self._shims), SHIMS]
        mounts = [b for b in tree.branches if b.target != "/" and b.lower is None]
        for mount in sorted(mounts, key=lambda branch: branch.target.count("/")):
            told += ["--ro-bind" if mount.read_only else "--bind", mount.source, mount.target]
        told += ["--clearenv"]
        for name, value in {**self._environment, **process.env}.items():
            told += ["--setenv", name, value]
        told += ["--chdir", process.cwd or "/"]
        return told

    def _mask(self, path: str) -> list[str]:
        if not any(_holds(directory, path) for directory in (*self._view.overlaid, *self._view.bound)):
            return []
        if os.path.isdir(path):
            return ["--tmpfs", path]
        return ["--ro-bind", "/dev/null", path] if os.path.lexists(path) else []

    def _put_bash_at_sh(self, tree: Tree) -> None:
        """`/bin/sh` too is bash where the host has it: images' shells accept `[[`, dash does not."""
        if self._bash is None:
            return
        with contextlib.suppress(OutsideTree, FileExistsError):  # a read-only view keeps its own sh
            trees.place_for(tree, self._sh).symlink_to(self._bash)


class _Sandboxed:
    """A running bubblewrap. It has a child, process 1 of the step's namespace, whose death ends all in there."""

    def __init__(self, pid: int, status: int, log: int, started_at_byte: int, bound: Bound | None) -> None:
        self._pid = pid
        self._status = status
        self._status_text = b""
        self._log = log
        self._started_at_byte = started_at_byte
        self._is_over = False
        self._bound = bound
        if bound is not None:
            bound.began(pid, self.kill)

    async def wait(self) -> Ended:
        exit_code = await processes.ended(self._pid)
        asyncio.get_running_loop().remove_reader(self._status)
        self._is_over = True
        try:
            child = self._told("child-pid")
            if child is not None:
                await processes.gone(child)
            told_code = self._told("exit-code")
        finally:
            os.close(self._status)
        out_of_memory = self._bound is not None and self._bound.ended()
        if told_code is None and exit_code == 1:
            return self._never_began()
        return Ended(exit_code=exit_code if told_code is None else told_code, out_of_memory=out_of_memory)

    def terminate(self) -> None:
        """TERM to bubblewrap would kill the step at once: it is the step's own processes that are asked."""
        if self._is_over:
            return
        child = self._told("child-pid")
        if child is None or processes.signal_descendants(child, signal.SIGTERM) == 0:
            self.kill()  # nothing of the step's runs yet

    def kill(self) -> None:
        if self._is_over:
            return
        asyncio.get_running_loop().remove_reader(self._status)
        child = self._told("child-pid")
        if child is not None:
            processes.send(child, signal.SIGKILL)
        else:
            # Killing bubblewrap itself now could leave a child that waits for its parent's word for ever.
            asyncio.get_running_loop().add_reader(self._status, self.kill)

    def _told(self, key: str) -> int | None:
        """The value of `key` in what bubblewrap has written so far: a few small JSON documents, a line each."""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._status, 4096):
                self._status_text += more
        for line in self._status_text.splitlines(keepends=True):
            if line.endswith(b"\n") and key in (document := json.loads(line)):
                return int(document[key])
        return None

    def _never_began(self) -> Ended:
        """Bubblewrap gave up before the program ran; the reason is the last thing in the log, and its own words."""
        written = os.pread(self._log, 65536, self._started_at_byte)
        failed = _EXEC_FAILED.search(written)
        if failed is None:
            reason = written.decode(errors="replace").strip().removeprefix("bwrap: ")
            return Ended(exit_code=1, could_not_start=reason or "the sandbox could not be made")
        # As a shell has it: a name found nowhere is 127, a file that is no program 126.
        is_absent = failed["reason"].startswith(b"No such file") or b"/" not in failed["program"]
        return Ended(exit_code=127 if is_absent else 126)


def make_shims(directory: Path, python: str | None) -> None:
    """Fill the directory that comes first in a step's PATH. A virtual environment's python needs its own argv[0]."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    is_virtual = python is not None and (Path(python).parent.parent / "pyvenv.cfg").exists()
    for name in ("python", "python3"):
        shim = directory / name
        shim.unlink(missing_ok=True)
        if python is None:
            continue
        if is_virtual:
            shim.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
            shim.chmod(0o755)
        else:
            shim.symlink_to(python)
    bash = shutil.which("bash", path="/usr/local/bin:/usr/bin:/bin")
    (directory / "sh").unlink(missing_ok=True)
    if bash is not None:
        (directory / "sh").symlink_to(bash)


def view_of_host(directories: tuple[str, ...], python: str | None) -> HostView:
    """What of the host can be shown: of `directories` those that hold something, and the interpreter's own."""
    linked = []
    shown = [directory for directory in directories if _has_content(directory)]
    for name in _LINKED:
        path = f"/{name}"
        if os.path.islink(path):
            linked.append((os.readlink(path), path))
        elif _has_content(path):
            shown.append(path)
    for interpreter in () if python is None else (python, os.path.realpath(python)):
        prefix = str(Path(interpreter).parent.parent)
        if not any(_holds(directory, prefix) for directory in shown):
            shown.append(prefix)
    return HostView(overlaid=tuple(shown), linked=tuple(linked))


def search_path(python: str | None) -> str:
    standard = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    beside_python = [] if python is None or str(Path(python).parent) in standard else [str(Path(python).parent)]
    return ":".join([SHIMS, *beside_python, *standard])


def _holds(directory: str, path: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _has_content(directory: str) -> bool:
    try:
        return any(os.scandir(directory))
    except OSError:
        return False


def _flat(directory: str) -> str:
    return directory.strip("/").replace("/", "-")


async def try_out(runtime: Sandbox, home: Path, process: Process) -> Ended:
    """Really run something, in a throw-away tree in `home`, an empty directory. Raises CannotStart."""
    spec = StepSpec(key="probe", main=process)
    log = os.open(home / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        tree = runtime.lay_out(spec, MAIN, home)
        await asyncio.to_thread(runtime.prepare, spec, MAIN, home, tree)
        ended = await runtime.start(spec.main, home, tree, log).wait()
        if ended.exit_code != 0 and ended.could_not_start is None:
            said = os.pread(log, 2000, 0).decode(errors="replace").strip()
            return Ended(exit_code=ended.exit_code, could_not_start=said or f"exit code {ended.exit_code}")
        return ended
    finally:
        os.close(log)
