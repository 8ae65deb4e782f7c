"""For whom a layer is open: flags from Unleash or a local file, one sticky decision a request.

The Unleash provider, which needs the extra `unleash`, is `tidegate.flags.unleash.UnleashFlags`.
"""

from tidegate.flags.evaluate import Constraint, Flag, FlagContext, Strategy, band_of, is_open, normalized
from tidegate.flags.gate import UNIT_FIELDS, Decision, Gates, ReachChanged
from tidegate.flags.local import LocalFlags, parse_flags
from tidegate.flags.provider import FlagProvider, PollsNow, ProviderHealth, Reach
from tidegate.flags.report import OnError
from tidegate.flags.stops import Stops
from tidegate.flags.stops_file import FileHome
from tidegate.flags.stops_polled import PolledStops

__all__ = [
    "UNIT_FIELDS",
    "Constraint",
    "Decision",
    "FileHome",
    "Flag",
    "FlagContext",
    "FlagProvider",
    "Gates",
    "LocalFlags",
    "OnError",
    "PolledStops",
    "PollsNow",
    "ProviderHealth",
    "Reach",
    "ReachChanged",
    "Stops",
    "Strategy",
    "band_of",
    "is_open",
    "normalized",
    "parse_flags",
]
