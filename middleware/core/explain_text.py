"""An explanation as lines for a terminal, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tidegate.middleware.core.explain_key import Key
from tidegate.middleware.core.records import ScopedTag

if TYPE_CHECKING:  # an explanation shows itself by what is here
    from tidegate.middleware.core.explain import Explanation, LayerState, Step, Stored

__all__ = ["as_json", "hidden", "lines_of", "printable", "shown_tag"]


def lines_of(told: "Explanation") -> list[str]:
    """What a person reads: the verdict first, then why, then what it is stored under."""
    who = "nobody" if told.identity is None else told.identity.tenant
    if told.identity is not None and told.identity.user is not None:
        who += f"/{told.identity.user}"
    lines = [f"{told.method or 'request'} {told.url or ''} as {who}".replace("  ", " ")]
    lines += [f"  {line}" for line in (_answered(told.status), _stored(told), _served(told.found)) if line]
    if told.cache_status is not None:
        lines.append(f"  Cache-Status: {told.cache_status}")
    lines += ["why", *(line for step in told.steps for line in _step(step))]
    if told.key is not None:
        lines += ["key", *(f"  {line}" for line in _key(told.key))]
    stored = told.found.tags if told.found is not None and told.served else ()
    lines += _tags("tags", tuple(dict.fromkeys((*told.tags, *stored))))
    lines += _tags("purges", told.purges)
    lines += ["layers", *(f"  {line}" for line in _layers(told.layers))]
    return [printable(line) for line in lines]


def as_json(told: "Explanation") -> dict[str, Any]:
    """The same for programs; the fields are those of `Explanation`, and `served`."""
    found = asdict(told)
    if told.identity is not None:
        # Grants are the app's own affair, and may be readable: whether there are any is all that is told.
        found["identity"] = {
            "tenant": told.identity.tenant, "user": told.identity.user, "grants": bool(told.identity.grants),
        }  # fmt: skip
    found |= {"tags": hidden(told.tags), "purges": hidden(told.purges), "served": told.served}
    if told.found is not None:
        found["found"]["tags"] = hidden(told.found.tags)
    return found


def hidden(tags: Sequence[ScopedTag]) -> list[ScopedTag]:
    """The tag of a URL holds its query, and that perhaps a token."""
    return [(scope, "uri" if tag.startswith("uri:") else tag) for scope, tag in tags]


def shown_tag(tag: str) -> str:
    """A tag for a person: that of a URL holds its query, and that perhaps a token."""
    return "its own URL" if tag.startswith("uri:") else tag


def printable(line: str) -> str:
    """A line that does to a terminal no more than show itself, whatever a request or response put into it."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in line)


def _answered(status: int | None) -> str:
    return f"the app answered: {status}" if status is not None else ""


def _stored(told: "Explanation") -> str:
    if told.purges or (told.served and not told.stored):  # stored again it is not, which says nothing of what was
        return ""
    if told.stored is None:
        return "stored: that depends on the response"
    if not told.stored:
        return "stored: no"
    whose = {"public": "everybody", "tenant": "the tenant", "user": "the user"}[told.share or "user"]
    return f"stored: yes, fresh for {told.lifetime:g} s, for {whose}"


def _served(found: "Stored | None") -> str:
    if found is None:
        return ""
    how = {
        "fresh": "yes",
        "while-revalidating": "yes, stale, while the app is asked in the background",
        "on-error": "only if the app fails",
        "ask-first": "not without asking the app",
    }[found.serving]
    return f"served from the store: {how} (age {found.age} s, ttl {found.ttl} s, {len(found.tags)} tags)"


def _step(step: "Step") -> list[str]:
    because = f": {step.because}" if step.because else ""
    source = f" [{step.source}]" if step.source else ""
    return [f"  {step.about}: {step.found}{because}{source}", *([f"    fix: {step.fix}"] if step.fix else [])]


def _key(key: Key) -> list[str]:
    parts = [("namespace", key.namespace), ("share", key.share), ("tenant", key.tenant), ("user", key.user)]
    parts += [("grants", "yes" if key.grants else "none"), ("scheme", key.scheme), ("host", key.host)]
    parts += [("path", key.raw_path), ("query", key.query or "none")]
    lines = [", ".join(f"{name} {value}" for name, value in parts if value is not None)]
    if key.left_out:
        lines.append(f"parameters that do not count: {', '.join(key.left_out)}")
    for name, value in key.vary:
        lines.append(f"Vary {name}: {'absent' if value is None else value}")
    return [*lines, f"hash {key.hash}"]


def _tags(title: str, tags: Sequence[ScopedTag]) -> list[str]:
    if not tags:
        return []
    return [title, *(f"  {scope}: {shown_tag(tag)}" for scope, tag in tags)]


def _layers(layers: "Sequence[LayerState]") -> list[str]:
    lines: list[str] = []
    for (is_open, why), members in groupby(layers, lambda layer: (layer.open, layer.why)):
        names = ", ".join(layer.layer for layer in members)
        lines.append(f"{names} {'open' if is_open else 'shut'}: {why}")
    return lines
