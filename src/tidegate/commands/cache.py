"""`tidegate cache explain`: what the cache does with a request, and why."""

import argparse
import asyncio
import json
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import urlsplit

from tidegate.commands import purging
from tidegate.commands.shared import Commands, say
from tidegate.errors import Problems, TidegateError
from tidegate.middleware.core.identity import Identity

__all__ = ["register"]

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_TEXT: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate cache …`."""
    parser = families.add_parser("cache", help="what the cache does with a request, and why; purges")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    summary = "is it stored, for how long, for whom, under which key and tags, by which rule, and what would change it"
    explain = commands.add_parser("explain", parents=[common], help=summary, description=summary)
    explain.add_argument("method", metavar="METHOD", help="GET or HEAD; of another it is told what it purges")
    explain.add_argument("url", metavar="URL", help="with scheme and host: they are part of the key")
    explain.add_argument("-H", "--header", metavar="NAME:VALUE", action="append", default=[], help="a request field")
    explain.add_argument("--as", dest="identity", metavar="TENANT[/USER]", help="as if this one asked the cache")
    explain.add_argument("--grants", metavar="TEXT", default="", help="with --as: the grants of that identity")
    explain.add_argument(
        "--app", metavar="MODULE:NAME", help="the application, in this process (default: ask the URL over HTTP)"
    )
    explain.add_argument(
        "--no-run", action="store_true", help="with --app: the request's side only, the app is not run"
    )
    explain.add_argument("--json", action="store_true", help="the same for programs")
    explain.set_defaults(run=_explain)
    purging.register(commands, common)


def _explain(arguments: argparse.Namespace) -> int:
    method, headers, identity = _checked(arguments)
    if arguments.app is None:
        return _over_http(method, arguments.url, headers, arguments)
    from tidegate.middleware.core.explain_text import as_json, lines_of
    from tidegate.operations.examining import Asked, explain_in, load_app

    if arguments.config:
        os.environ["TIDEGATE_CONFIG"] = arguments.config  # the app reads its settings itself
    asked = Asked(method=method, url=arguments.url, headers=tuple(headers), identity=identity, run=not arguments.no_run)
    with redirect_stdout(sys.stderr):  # what the app prints is not what was asked for
        told = asyncio.run(explain_in(load_app(arguments.app), asked))
    if arguments.json:
        say(json.dumps(as_json(told), indent=2))
        return 0
    for line in lines_of(told):
        say(line)
    if identity is not None and told.status is not None:
        say("note: --as speaks to the cache only; the app answered whoever the fields given with -H stand for")
    return 0


def _over_http(method: str, url: str, headers: list[tuple[bytes, bytes]], arguments: argparse.Namespace) -> int:
    """Ask a running server, and say what its answer tells. Only Cache-Status is known of it, not its policies."""
    from tidegate.middleware.core.explain_status import read_cache_status
    from tidegate.middleware.core.explain_text import printable
    from tidegate.operations.asking import Unanswered, ask

    try:
        answer = ask(method, url, headers=headers, limit=0)
    except Unanswered as error:
        # The text of some holds the URL, and so a token.
        fix = "is it running there? --app MODULE:NAME needs no server"
        raise TidegateError(f"{url.partition('?')[0]} could not be asked: {error.kind}; {fix}") from None
    said = read_cache_status(answer.headers)
    if arguments.json:
        found: dict[str, Any] = {"status": answer.status, "caches": said and [asdict(one) for one in said]}
        say(json.dumps(found, indent=2))
        return 0
    say(f"{method} answered {answer.status}")
    if not said:
        what = "cannot be read (RFC 9211)" if said is None else "is absent"
        say(f"Cache-Status {what}: the cache is shut for this request, in shadow mode, or not there")
        if answer.status in (401, 403, 407):
            say("or what stands above it has answered (authentication, say): show who asks with -H")
    for one in said or ():
        say(printable(f"{one.cache}: {'; '.join(one.words) or 'says nothing of it'}"))
        if one.rule is not None:
            say(f"  why: {one.rule.words} [{one.rule.source}]")
            if one.rule.fix:
                say(f"  fix: {one.rule.fix}")
    say("policies, key and tags are known to the app only: --app MODULE:NAME, where it can be imported")
    return 0


def _checked(arguments: argparse.Namespace) -> tuple[str, list[tuple[bytes, bytes]], Identity | None]:
    """Method, fields and identity.

    Raises:
        ConfigError: with everything that is wrong. What may be a secret is not repeated.
    """
    problems = Problems("cache explain")
    method = str(arguments.method).upper()
    if not _TOKEN.match(method):
        problems.add("METHOD", arguments.method, "is no method", "write GET, HEAD, PUT, ...")
    elif arguments.app is None and method not in ("GET", "HEAD"):
        fix = "name the application with --app: nothing is sent then, and what it would purge is told"
        problems.add("METHOD", method, "may change something on the server that is asked", fix)
    _check_url(str(arguments.url), problems)
    headers: list[tuple[bytes, bytes]] = []
    for at, line in enumerate(arguments.header):
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip(" \t")
        if not colon or not _TOKEN.match(name):
            problems.add(f"-H[{at}]", "***", "is no header field", "write 'Name: value'")
        elif not _TEXT.match(value):
            problems.add(
                f"-H[{at}]", f"{name}: ***", "has a value that no field can have", "leave control characters out"
            )
        else:
            headers.append((name.lower().encode(), value.encode("latin-1")))
    identity = _identity(arguments, problems)
    for option, given in (("--as", arguments.identity), ("--no-run", arguments.no_run), ("--grants", arguments.grants)):
        if given and arguments.app is None:
            fix = "name the application with --app; a server is shown who asks with -H"
            problems.add(option, given, "is nothing that a running server can be told", fix)
    problems.raise_if_any()
    return method, headers, identity


def _check_url(url: str, problems: Problems) -> None:
    shown = url.partition("?")[0]
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises too
    except ValueError:
        problems.add("URL", "***", "is no URL", "write https://host/path?query")
        return
    if parts.username is not None or parts.password is not None:
        problems.add("URL", "***", "holds a user name or password", "give it with -H 'Authorization: ...'")
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        problems.add("URL", shown, "has no scheme and host, which are part of the key", "write https://host/path?query")
    elif not url.isascii() or any(letter <= " " for letter in url):
        problems.add("URL", shown, "has letters that a URL cannot have", "write them as %20 and the like")


def _identity(arguments: argparse.Namespace, problems: Problems) -> Identity | None:
    if arguments.identity is None:
        if arguments.grants:
            problems.add("--grants", "***", "are nobody's", "say whose with --as TENANT/USER")
        return None
    tenant, slash, user = str(arguments.identity).partition("/")
    if not tenant or (slash and not user):
        problems.add("--as", arguments.identity, "names no tenant, or an empty user", "write acme or acme/ann")
        return None
    return Identity(tenant, user or None, arguments.grants)
