"""The store by every kind of address, on real servers: TLS, a user of an ACL, a unix socket."""

import asyncio
import datetime
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis

from tests.docs.pages import Page
from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, hears, new_metrics, positions, write
from tests.services import RedisCluster, RedisServer, SentinelTrio, free_port, wait_until
from tidegate.errors import StoreError
from tidegate.middleware.core.records import PUBLIC_SCOPE
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import in_front_of

Start = Callable[..., RedisServer]


def works(url: str, patience: float = 20.0) -> None:
    """The store does there all that it ever asks of a server."""
    metrics = new_metrics()

    async def run() -> None:
        store = RedisStore(url, metrics=metrics)
        await store.start()
        try:
            small = entry(tags=((ACME, "it"),), positions=await positions(store))
            await write(store, b"small", small)
            await write(store, b"large", entry(bytes(300_000)))
            assert (await store.purge({ACME: ["it"], PUBLIC_SCOPE: ["that"]})).state == "done"
            assert (await store.get(b"small", SCOPES)).record is None
            await store.delete(b"large")
            assert (await store.get(b"large")).record is None

            async def checked() -> bool:
                return store.checked

            await eventually(checked, "the policy is looked at", patience)
        finally:
            await store.aclose()

    asyncio.run(run())
    for component in ("redis-check", "redis-policy", "redis-codec"):
        assert metrics.errors.labels(component)._value.get() == 0, component


def in_step(url: str, patience: float = 30.0) -> None:
    """Memory in front hears of purges there."""

    async def run() -> None:
        metrics = new_metrics()
        store = in_front_of(RedisStore(url, metrics=metrics), max_bytes=1 << 20, metrics=metrics)
        await store.start()
        try:
            await hears(store, patience)
        finally:
            await store.aclose()

    asyncio.run(run())


def durable(url: str) -> bool | None:
    """Whether a purge there is said to have reached a replica."""

    async def run() -> bool | None:
        store = RedisStore(url, metrics=new_metrics())
        try:
            await store.purge({ACME: ["it"]})
            return await store.settled({ACME: ["it"]})
        finally:
            await store.aclose()

    return asyncio.run(run())


def documented() -> list[str]:
    """The rights that the docs name: of a user, where there are replicas, in a cluster, and of the Sentinels' user."""
    told = " ".join(Page.of("docs/mounting.md").section("Redis").split()).partition("A user of an ACL needs")[2]
    return re.findall(r"`([^`]*)`", told)[:4]


def refused(url: str) -> str:
    """Why nothing can be read there."""

    async def run() -> str:
        store = RedisStore(url, metrics=new_metrics())
        try:
            with pytest.raises(StoreError) as caught:
                await store.get(b"key")
            return str(caught.value)
        finally:
            await store.aclose()

    return asyncio.run(run())


def signed(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """A new certificate authority, and a key and certificate for 127.0.0.1 that it signed."""
    now = datetime.datetime.now(datetime.UTC)

    def make(common: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, is_ca: bool) -> Path:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        )
        made = folder / f"{name} {common}.pem".replace(" ", "-")
        made.write_bytes(builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return made

    folder.chmod(0o755)
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    secret = folder / f"{name}.key"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret.write_bytes(own.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    return make(f"{name} CA", root, root, True), make("server", own, root, False), secret


def test_over_tls_a_server_is_believed_that_the_named_authority_has_signed(start_redis: Start, tmp_path: Path) -> None:
    authority, certificate, key = signed(tmp_path, "ours")
    other, _, _ = signed(tmp_path, "another")
    port = free_port()
    server = start_redis(
        options={
            "tls-port": str(port),
            "tls-cert-file": str(certificate),
            "tls-key-file": str(key),
            "tls-ca-cert-file": str(authority),
            "tls-auth-clients": "no",
        }
    )
    works(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}")
    assert "CERTIFICATE_VERIFY_FAILED" in refused(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={other}")
    assert "CERTIFICATE_VERIFY_FAILED" in refused(f"rediss://127.0.0.1:{port}/0")
    assert refused(f"rediss://127.0.0.1:{server.port}/0?ssl_ca_certs={authority}"), "one that does no TLS"


@pytest.mark.parametrize("kind", [SentinelTrio, RedisCluster])
def test_sentinels_and_a_cluster_are_spoken_to_over_tls_all_the_way(
    kind: type[SentinelTrio | RedisCluster], tmp_path: Path
) -> None:
    authority, certificate, key = signed(tmp_path, "ours")
    other, _, _ = signed(tmp_path, "another")
    names = {"tls-cert-file": str(certificate), "tls-key-file": str(key), "tls-ca-cert-file": str(authority)}
    with kind(tls=names) as servers:
        works(f"{servers.tls_url}?ssl_ca_certs={authority}")
        in_step(f"{servers.tls_url}?ssl_ca_certs={authority}")
        assert "CERTIFICATE_VERIFY_FAILED" in refused(f"{servers.tls_url}?ssl_ca_certs={other}")


def test_a_user_of_an_acl_needs_what_the_docs_say_and_no_more(server: RedisServer) -> None:
    rights = documented()[0].split()
    at = f"@127.0.0.1:{server.port}/0"
    try:
        server.command_reply("ACL", "SETUSER", "app", "reset", "on", ">let me in", *rights)
        works(f"redis://app:let%20me%20in{at}")
        works(f"unix://app:let%20me%20in@{server.unix_socket}")
        assert "invalid username-password pair" in refused(f"redis://app:wrong{at}")
        with Redis.from_url(f"redis://app:let%20me%20in{at}") as client:
            assert client.execute_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "tidegate:g:") == b"OK"
        for right in [one for one in rights[1:] if one != "+@connection"]:  # that is for tracking
            without = [one for one in rights if one != right]
            server.command_reply("ACL", "SETUSER", "app", "reset", "on", ">let me in", *without)
            with pytest.raises((AssertionError, StoreError)):
                works(f"redis://app:let%20me%20in{at}", patience=0.5)
    finally:
        server.command_reply("ACL", "DELUSER", "app")


def test_a_user_of_a_clusters_acl_needs_more_and_no_more_than_that(redis_cluster: RedisCluster) -> None:
    one, replicas, cluster, _ = documented()
    rights = f"{one} {replicas} {cluster}".split()
    url = redis_cluster.url.replace("//", "//app:x@")

    def may(*those: str) -> None:
        for server in redis_cluster.servers:
            server.command_reply("ACL", "SETUSER", "app", "reset", "on", ">x", *those)

    try:
        may(*rights)
        works(url)
        in_step(url)
        wait_until(lambda: durable(url) is True, 20, "a replica has it, and says so")
        for right in [*replicas.split(), *cluster.split()]:
            may(*[other for other in rights if other != right])
            if right in replicas:
                assert durable(url) is False
                continue
            with pytest.raises((AssertionError, StoreError)):
                in_step(url, patience=0.5)
    finally:
        for server in redis_cluster.servers:
            server.command_reply("ACL", "DELUSER", "app")


def test_a_user_of_the_sentinels_acl_needs_what_the_docs_say_and_no_more(sentinels: SentinelTrio) -> None:
    rights = documented()[3].split()
    url = f"{sentinels.url}?sentinel_username=app&sentinel_password=x"

    def may(*those: str) -> None:
        for server in sentinels.sentinels:
            server.command_reply("ACL", "SETUSER", "app", "reset", "on", ">x", *those)

    def watched() -> bool:
        """Whether all Sentinels are listened to."""

        async def run() -> bool:
            metrics = new_metrics()
            store: Any = RedisStore(url, metrics=metrics)
            try:
                await store.get(b"key")
                watches = store._servers._finder._watches

                async def decided() -> bool:
                    failures = metrics.errors.labels("sentinels")._value.get()
                    return failures >= 3 or all(watch.named is not None for watch in watches)

                await eventually(decided, "it is known", 30.0)
                return all(watch.named is not None for watch in watches)
            finally:
                await store.aclose()

        return asyncio.run(run())

    try:
        may(*rights)
        works(url)
        wait_until(watched, 30, "all Sentinels are listened to")
        for right in rights:
            may(*[other for other in rights if other != right])
            if right.endswith("get-master-addr-by-name"):
                assert "no permissions to run" in refused(url)
            else:
                works(url)
                assert not watched(), right
    finally:
        for server in sentinels.sentinels:
            server.command_reply("ACL", "DELUSER", "app")


def test_a_unix_socket_and_a_database_by_number_are_addresses_too(server: RedisServer) -> None:
    works(server.unix_url)
    works(f"{server.unix_url}?db=3")
    works(f"redis://127.0.0.1:{server.port}/5")
    told = server.command_reply("INFO", "keyspace").decode()
    assert re.findall(r"^db(\d+):", told, re.M) == ["0", "3", "5"]
