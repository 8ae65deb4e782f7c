"""The store by every kind of address, on real servers: TLS, a user of an ACL, a unix socket."""

import asyncio
import datetime
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis

from tests.docs.pages import Page
from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, hears, new_metrics, positions, write
from tests.services import RedisCluster, RedisServer, SentinelTrio, free_port
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


def in_step(url: str) -> None:
    """Memory in front hears of purges there."""

    async def run() -> None:
        metrics = new_metrics()
        store = in_front_of(RedisStore(url, metrics=metrics), max_bytes=1 << 20, metrics=metrics)
        await store.start()
        try:
            await hears(store)
        finally:
            await store.aclose()

    asyncio.run(run())


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
    (told,) = re.findall(r"`(~tidegate:\* [^`]*)`", " ".join(Page.of("docs/mounting.md").section("Redis").split()))
    rights = told.split()
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


def test_a_unix_socket_and_a_database_by_number_are_addresses_too(server: RedisServer) -> None:
    works(server.unix_url)
    works(f"{server.unix_url}?db=3")
    works(f"redis://127.0.0.1:{server.port}/5")
    told = server.command_reply("INFO", "keyspace").decode()
    assert re.findall(r"^db(\d+):", told, re.M) == ["0", "3", "5"]
