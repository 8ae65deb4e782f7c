"""Stop records in Redis 7 or later, or in Valkey: for every machine that reads the same server (extra `redis`).

One hash for each environment, `<namespace>:stops:<environment>`, field = flag; and a channel of the same name, on which
each write tells all readers to look now. Both are written by one script, so that a reader that hears of a record finds
it. A lost channel only costs time: readers look every poll interval anyway.

Every call has a deadline. The connections are not those of the store, whose queue a kill must not wait in.
"""

import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from redis.exceptions import RedisError

from tidegate.addresses import Address
from tidegate.errors import FlagError, Problems
from tidegate.flags.stop_records import Seen, StopRecord, encode
from tidegate.redis_client import open_client

__all__ = ["RedisHome", "RedisNudges"]

WRITE: Final = """#!lua flags=allow-oom
-- KEYS: records. ARGV: flag, now (us) by the caller's clock, the record before and after its number.
local time = redis.call('TIME')
local number = math.max(time[1] * 1000000 + time[2], tonumber(ARGV[2]))
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held then
  local ok, old = pcall(cjson.decode, held)
  local last = ok and type(old) == 'table' and old['number']
  if type(last) == 'number' and last >= number and last < 9007199254740991 then number = last + 1 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. string.format('%.0f', number) .. ARGV[4])
-- Who may not publish can stop a flag all the same.
local heard = redis.pcall('PUBLISH', KEYS[1], ARGV[1])
return type(heard) == 'number' and heard or -1
"""

_MAY: Final = """#!lua flags=no-writes,allow-oom
-- KEYS: records. Which of the two the user that asks may not do on the channel of that name.
local lacking = {}
for _, command in ipairs({'SUBSCRIBE', 'PUBLISH'}) do
  local asked = command == 'PUBLISH' and {command, KEYS[1], ''} or {command, KEYS[1]}
  if not redis.acl_check_cmd(unpack(asked)) then lacking[#lacking + 1] = string.lower(command) end
end
return lacking
"""

_SLICE: Final = 0.25
"""Seconds between two looks whether to stop listening."""

_HOLE: Final = 7
"""Stands where the script puts the number."""


class _Client:
    """The client of redis-py for an address; of a cluster it is made when it is first needed, which asks the cluster.

    Raises:
        ConfigError: if the url cannot be used.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._options: dict[str, Any] = {"timeout": timeout, "protocol": 2}
        if not url.startswith("unix:"):
            # A connection that nobody answers any more is dropped within half a minute, and made anew.
            keepalive = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
            self._options |= {"socket_keepalive": True, "socket_keepalive_options": keepalive}
        self._made: Any = None
        self._making = threading.Lock()
        try:
            if Address.of(url).kind != "cluster":
                self()
        except (ValueError, TypeError) as error:
            problems = Problems("stops in redis")
            fix = "write redis://host:6379/0, rediss://, unix://, redis+sentinel:// or redis+cluster://, or name a file"
            problems.add("url", _shown(url), f"cannot be used ({error})", fix)
            problems.raise_if_any()

    def __call__(self) -> Any:
        """The client.

        Raises:
            RedisError: if no node of a cluster answers.
        """
        with self._making:
            if self._made is None:
                self._made = open_client(self._url, **self._options)
            return self._made

    def close(self) -> None:
        """Let go of the connections; a later call makes new ones."""
        if self._made is not None:
            self._made.close()


class RedisHome:
    """The stop records of one environment in Redis.

    url: as `tidegate.addresses` has it. namespace: first part of every key; apps on one Redis need different
    ones if a flag of one is not to be stopped with the other's. timeout: seconds for a connection, and for an answer.

    Raises:
        ConfigError: if the url cannot be used.
    """

    def __init__(self, url: str, environment: str, *, namespace: str = "tidegate", timeout: float = 1.0) -> None:
        self._url = url
        self._key = f"{namespace}:stops:{environment}"
        self._redis = _Client(url, timeout)

    def __str__(self) -> str:
        return f"{_shown(self._url)} ({self._key})"

    def read(self, flags: tuple[str, ...]) -> Seen:
        """The records of these flags.

        Raises:
            FlagError: if Redis does not answer in time, or refuses.
        """
        if not flags:
            return {}
        try:
            found: list[bytes | None] = self._redis().hmget(self._key, flags)
        except (RedisError, OSError) as error:
            raise self._failed("read", error) from error
        return {flag: raw for flag, raw in zip(flags, found, strict=True) if raw is not None}

    def write(self, record: StopRecord) -> int | None:
        """Put a record in the place of the flag's last one; its number is made in Redis. How many readers heard.

        None: nobody could be told, and readers find it at their next look.

        Raises:
            FlagError: if Redis does not answer in time, or refuses. It may have been written all the same.
        """
        before, after = encode(replace(record, number=_HOLE)).split(b'"number": %d, ' % _HOLE)
        now = int(record.since * 1_000_000)
        try:
            arguments = [record.flag, now, before + b'"number": ', b", " + after]
            heard: int = self._redis().eval(WRITE, 1, self._key, *arguments)
        except (RedisError, OSError) as error:
            raise self._failed("written", error) from error
        return heard if heard >= 0 else None

    def lacking(self) -> tuple[str, ...]:
        """Which of `subscribe` and `publish` the user of this address may not do on the channel. Nothing is sent there.

        Raises:
            FlagError: if Redis does not answer in time, or refuses.
        """
        try:
            told: list[bytes] = self._redis().eval(_MAY, 1, self._key)
        except (RedisError, OSError) as error:
            raise self._failed("asked about", error) from error
        return tuple(one.decode() for one in told)

    def rights(self, lacking: Iterable[str]) -> str:
        """What the ACL of Redis has to grant for these."""
        return " ".join([*(f"+{one}" for one in lacking), f"&{self._key}"])

    def close(self) -> None:
        """Let go of the connections; a later call makes new ones."""
        self._redis.close()

    def _failed(self, what: str, error: Exception) -> FlagError:
        return FlagError(
            f"the stop records in {self} could not be {what}: {_shown(str(error)) or type(error).__name__}"
        )


class RedisNudges:
    """Hears when a record of the environment is written. Arguments and errors as those of `RedisHome`."""

    def __init__(self, url: str, environment: str, *, namespace: str = "tidegate", timeout: float = 1.0) -> None:
        self._channel = f"{namespace}:stops:{environment}"
        self._url = url
        self._redis = _Client(url, timeout)

    def listen(self, heard: Callable[[], None], closing: threading.Event) -> None:
        """Call `heard` once connected and at each nudge, until `closing` is set.

        Raises:
            FlagError: when the connection is lost, or cannot be made in time.
        """
        subscription: Any = None
        try:
            subscription = self._redis().pubsub()
            subscription.subscribe(self._channel)
            while not closing.is_set():
                # The confirmation counts too: from then on nothing is lost, and what was written before is read now.
                if subscription.get_message(timeout=_SLICE) is not None:
                    heard()
        except (RedisError, OSError) as error:
            told = _shown(str(error)) or type(error).__name__
            raise FlagError(f"nudges over {_shown(self._url)} are not heard: {told}") from error
        finally:
            if subscription is not None:
                subscription.close()
            self._redis.close()


def _shown(text: str) -> str:
    """Without the password of an address."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)
