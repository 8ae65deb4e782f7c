"""Whoever follows README.md or a page of docs/ finds that it works as it stands there."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Page
from tests.docs.reader import Reader, Stumbled
from tests.driver import call

FOLLOWED_ALONE = [name for name in PAGES if name != "docs/flags.md"]  # that one needs Unleash: test_unleash_page
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """What a page's headings can be linked to by."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def before(name: str, reader: Reader) -> None:
    """What a page takes for granted: docs/rollouts.md the app and the files of README.md, the examples' a clone."""
    if name == "docs/rollouts.md":
        readme = Page.of("README.md")
        for file in ("app.py", "tidegate.toml", "flags.json"):
            (reader.folder / file).write_text(reader.text_of(readme.saved_as(file)), encoding="utf-8")
    if name == "examples/README.md":
        shutil.copytree(ROOT / "examples", reader.folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        settings = reader.folder / "examples" / "whole_gate" / "tidegate.toml"
        settings.write_text(reader.here(settings.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize("name", FOLLOWED_ALONE)
def test_everything_that_a_page_says_to_do_works_in_its_order(name: str, tmp_path: Path) -> None:
    page = Page.of(name)
    assert page.of_language("python", "console"), f"{name} shows nothing to do"
    folder = tmp_path / "here"
    folder.mkdir()
    with Reader(folder) as reader:
        before(name, reader)
        reader.follow(page)


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md"])
def test_every_link_to_the_repository_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {name for name in PAGES if name.startswith("docs/")} <= linked


def test_the_second_request_to_the_readmes_app_is_a_hit_for_the_same_tenant_only(tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        reader.follow(Page(name="README.md", text="", blocks=(Page.of("README.md").saved_as("app.py"),)))
        app = reader.namespace["app"]

        async def drive() -> list[str | None]:
            tenants = ("acme", "acme", "globex")
            answers = [await call(app, "/clients", headers=[("x-tenant", tenant)]) for tenant in tenants]
            assert {answer.body for answer in answers} == {b'{"clients":["one","two"]}'}
            return [answer.header("cache-status") for answer in answers]

        first, second, other = asyncio.run(drive())
    assert first == other == "Tidegate; fwd=miss; stored"
    assert re.fullmatch(r"Tidegate; hit; ttl=(59|60)", second or "")


BROKEN = {
    "python that raises": "```python\n1 / 0\n```\n",
    "a claim that is not so": "```python\n1 + 1  # -> 3\n```\n",
    "a claim about nothing": "```python\nx = 1  # -> 1\n```\n",
    "a setting that does not exist": '```toml\n# tidegate.toml\n[cache]\nshares = "user"\n```\n',
    "a flag file with an unknown key": 'In `flags.json`:\n\n```json\n{"version": 1, "flags": {}, "more": 1}\n```\n',
    "a spec without objectives": "```yaml\nname: a\nflag: b\nsteps: [{percent: 1}]\n```\n",
    "a command that does not exist": "```console\n$ tidegate rollouts\n```\n",
    "an option that does not exist": "```console\n$ tidegate rollout schema --pretty\n```\n",
    "output that is not printed": "```console\n$ tidegate rollout schema\nhello\n```\n",
    "a target that does not exist": "```console\n$ make coffee\n```\n",
    "an extra that does not exist": "```console\n$ pip install 'tidegate[valkey]'\n```\n",
    "a program that no test knows": "```console\n$ frobnicate\n```\n",
    "a variable that nobody gave": "```console\n$ export TOKEN='…'\n```\n",
    "a block in no known language": "```ruby\nputs 1\n```\n",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_page_with_something_broken_fails(what: str, tmp_path: Path) -> None:
    page = Page.of("broken.md", f"# Broken\n\n{BROKEN[what]}")
    assert len(page.blocks) == 1
    with pytest.raises(Stumbled, match=r"broken\.md:\d+: "), Reader(tmp_path) as reader:
        reader.follow(page)


def test_a_server_that_a_page_starts_is_stopped_when_the_reader_leaves(tmp_path: Path) -> None:
    text = (
        "```python\n# app.py\nasync def app(scope, receive, send):\n    raise RuntimeError(scope['type'])\n```\n"
        "```console\n$ uvicorn app:app --port 8000 --lifespan off &\n```\n"
    )
    with Reader(tmp_path) as reader:
        reader.follow(Page.of("server.md", text))
        (server,) = reader.running
        assert server.poll() is None
    assert server.poll() is not None
