"""P8: from the call of `kill` to the last request that the layer touched: the poll interval and a second, always."""

from collections import Counter
from collections.abc import Callable

from tests.promises.kills import WORLDS, Measurement, measure, table
from tests.services import Unleash, Valkey

POLL_INTERVAL = 0.5
ROUNDS = 2


def test_kill_shuts_four_workers_within_the_poll_interval_and_a_second_though_unleash_hangs(
    start_unleash: Callable[..., Unleash], start_valkey: Callable[..., Valkey]
) -> None:
    unleash, valkey = start_unleash(own_postgres=True), start_valkey()
    with Measurement.set_up(unleash, valkey, poll_interval=POLL_INTERVAL) as measurement:
        made = measure(measurement, ROUNDS)
        samples = measurement.load.read()
    print(table(made))
    for world in WORLDS:
        for one in made[world]:
            assert one.last <= POLL_INTERVAL + 1, f"{world}: {one}"
            assert one.before >= 5, f"{world}: a floor of requests that the layer touched: {one}"
            assert ("did not answer" in one.said or "no answer" in one.said) is world.hangs, one.said
            assert ("; told " in one.said) is world.nudged, one.said
    assert Counter(sample.status for sample in samples).keys() == {200}
