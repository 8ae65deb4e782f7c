"""P1 on five frameworks: with the layers shut or open, round the app or inside, it answers what it answers bare."""

import asyncio
from functools import cache

import pytest

from tests.frameworks.django_site import prepare
from tests.frameworks.driving import Exchange
from tests.frameworks.stage import FRAMEWORKS, HOWS, STORY, for_the_client, seen, told
from tests.frameworks.surface import Framework, How


@pytest.fixture(scope="module", autouse=True)
def django_database() -> None:
    prepare()


@cache
def bare_story(framework: Framework) -> list[Exchange]:
    return asyncio.run(told(framework, None))


every_framework = pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
every_place = pytest.mark.parametrize("how", HOWS)


@every_framework
@every_place
def test_shut_every_message_is_the_bare_apps(framework: Framework, how: How) -> None:
    answers = asyncio.run(told(framework, how, is_open=False))
    for step, bare, answer in zip(STORY, bare_story(framework), answers, strict=True):
        assert seen(answer) == seen(bare), step


@every_framework
@every_place
def test_open_every_client_gets_what_the_bare_app_says_with_hits_in_between(framework: Framework, how: How) -> None:
    answers = asyncio.run(told(framework, how))
    for step, bare, answer in zip(STORY, bare_story(framework), answers, strict=True):
        if step.method != "HEAD" and "range" not in dict(step.headers):  # the store answers what these apps cannot
            assert for_the_client(answer, bare) == for_the_client(bare, bare), step
    hits = sum(answer.hit for answer in answers)
    assert hits >= (8 if how == "sub" else 40), hits
