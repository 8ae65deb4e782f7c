"""Tells Unleash how often each flag was found open and shut (POST /api/client/metrics).

The SDK would report what it was asked, and it is asked once for each decision that is remembered; so its own reporting
is turned off and this one takes its place. The numbers in Unleash are those of the requests: a report that fails is
sent again with the next one. Not guaranteed: the last report of a process while Unleash is away; and a report that
Unleash took, but whose answer was lost, counts twice, for its API knows no repetition.

Source: https://docs.getunleash.io/reference/api/unleash/register-client-metrics
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import requests
from UnleashClient.constants import METRICS_URL

from tidegate.errors import FlagError

__all__ = ["send_usage"]


def send_usage(
    url: str,
    headers: Mapping[str, str],
    counts: Mapping[str, tuple[int, int]],
    *,
    app_name: str,
    instance_id: str,
    since: datetime,
    timeout: float,
) -> None:
    """Report once.

    url: ends in `/api`.
    counts: flag -> how often it was open, and how often shut, since then.

    Raises:
        FlagError: if Unleash did not take it.
    """
    toggles: dict[str, Any] = {flag: {"yes": yes, "no": no, "variants": {}} for flag, (yes, no) in counts.items()}
    bucket: dict[str, Any] = {"start": since.isoformat(), "stop": datetime.now(UTC).isoformat(), "toggles": toggles}
    identity = {"unleash-appname": app_name, "unleash-instanceid": instance_id}
    try:
        answer = requests.post(
            url + METRICS_URL,
            json={"appName": app_name, "instanceId": instance_id, "bucket": bucket},
            headers={**headers, **identity},
            timeout=timeout,
        )
    except requests.RequestException as error:
        raise FlagError(f"usage was not reported: {error}") from error
    if answer.status_code != 202:
        raise FlagError(f"usage was not reported: HTTP status code {answer.status_code}")
