"""The script that makes a purge in one scope of the ledger: see `redis` for what the keys are.

A tag's stamp is a decimal number, its last hard purge (0: none), and behind it, each after a space, what else was asked
for: `~=<stamp>` its last soft purge; `&<others>=<stamp>` the last purge of what carries this tag and these others
(their names, with commas between); `~&<others>=<stamp>` the same, soft. What a later hard purge covers is dropped.
"""

from collections.abc import Iterable
from hashlib import sha1
from typing import Final

from tidegate.middleware.core.records import WHOLE_SCOPE, Aim, Target
from tidegate.middleware.stores.redis_link import Word
from tidegate.middleware.stores.redis_names import Names

__all__ = ["EVERYTHING", "MAX_TOGETHER", "PURGE", "PURGE_SHA", "STREAMED", "Purging"]

MAX_TOGETHER: Final = 16
"""Combinations remembered of one first tag; beyond, the oldest becomes a purge of that tag alone."""

STREAMED: Final = 2000
"""Purges that stand in the stream of those who cannot follow the stamps; older ones are let go."""

EVERYTHING: Final = b"*"
"""In the stream and on the channel: a purge of so many tags that their names would be too long."""

_NAMED: Final = 16
"""Tags of one purge that are named there."""

PURGE: Final = """#!lua flags=allow-oom
-- KEYS: position, index, whole scope, floor; for each target its first tag's stamp.
-- ARGV: retention (us), most stamps, most combinations; for each target its first tag's name (empty: the whole scope),
-- how ('', '~', '&...', '~&...'), and its stamp (empty: a new one; else this was made before, on another server).
-- Last, the stream to which the changed stamps are told (empty: none), its length, the most that are named, and the
-- channel on which they are told (empty: none).
local function text(number) return string.format('%.0f', number) end
local function hard_of(value) return tonumber(string.match(value or '', '^%d+') or '0') end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local new = now
if new <= last then new = last + 1 end
local newest, folded, written = last, 0, 0

local function stamp(key, how, at, anew)
  if how == '' and anew then
    redis.call('SET', key, text(at))
    written = written + 1
    return at
  end
  local value = redis.call('GET', key) or ''
  local hard, others = hard_of(value), {}
  for kind, number in string.gmatch(value, '(%S+)=(%d+)') do others[kind] = tonumber(number) end
  if how == '' then hard = math.max(hard, at) else others[how] = math.max(others[how] or 0, at) end
  local names = {}
  for kind in pairs(others) do if kind ~= '~' then names[#names + 1] = kind end end
  table.sort(names, function(a, b) return others[a] > others[b] or (others[a] == others[b] and a < b) end)
  while #names > tonumber(ARGV[3]) do
    local oldest = table.remove(names)
    if string.sub(oldest, 1, 1) == '~' then
      others['~'] = math.max(others['~'] or 0, others[oldest])
    else
      hard = math.max(hard, others[oldest])
    end
    folded = folded + 1
  end
  local soft = others['~'] or 0
  local words = {text(hard)}
  local highest = math.max(hard, soft)
  if soft > hard then words[2] = '~=' .. text(soft) end
  for _, kind in ipairs(names) do
    local stands = others[kind] > hard and (string.sub(kind, 1, 1) ~= '~' or others[kind] > soft)
    if stands then words[#words + 1] = kind .. '=' .. text(others[kind]) end
    highest = math.max(highest, others[kind])
  end
  local told = table.concat(words, ' ')
  if told ~= value then
    redis.call('SET', key, told)
    written = written + 1
  end
  return highest
end

for i = 5, #KEYS do
  local name, how, given = ARGV[3 * i - 11], ARGV[3 * i - 10], ARGV[3 * i - 9]
  local at = tonumber(given) or new
  newest = math.max(newest, at)
  local highest = stamp(KEYS[i], how, at, given == '')
  if name ~= '' then redis.call('ZADD', KEYS[2], text(highest), name) end
end
if newest > last then redis.call('SET', KEYS[1], text(newest)) end
local raised = math.max(hard_of(redis.call('GET', KEYS[3])), tonumber(redis.call('GET', KEYS[4]) or '0'))
local trimmed = 0
-- Let go of more than came in, so that the index shrinks to its limit, and of a bounded number, so that nobody waits.
local surplus = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[2])
local oldest = redis.call('ZRANGE', KEYS[2], 0, #KEYS + 100, 'WITHSCORES')
local gone = {}
for i = 1, #oldest, 2 do
  local score = tonumber(oldest[i + 1])
  if score > raised and score > now - tonumber(ARGV[1]) and #gone >= surplus then break end
  if score > raised then
    raised = score
    trimmed = score
  end
  gone[#gone + 1] = oldest[i]
end
-- A key of its own: whoever follows the purges need not hear of what is only forgotten.
if trimmed > 0 then redis.call('SET', KEYS[4], text(trimmed)) end
local prefix = string.sub(KEYS[3], 1, -2)
for _, tag in ipairs(gone) do
  redis.call('DEL', prefix .. tag)
  redis.call('ZREM', KEYS[2], tag)
end
local stream, channel = ARGV[3 * #KEYS - 8], ARGV[3 * #KEYS - 5]
local names = '*'
if #KEYS - 4 <= tonumber(ARGV[3 * #KEYS - 6]) then names = table.concat(KEYS, ' ', 5) end
if stream ~= '' then redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3 * #KEYS - 7], '*', 'n', names) end
-- Who may not publish follows the stamps (tracking_channel).
if channel ~= '' then redis.pcall('PUBLISH', channel, names) end
return {text(newest), folded, written}
"""

PURGE_SHA: Final = sha1(PURGE.encode()).hexdigest()


class Purging:
    """Writes the script's words.

    retention: seconds that any entry lives at most. max_stamps: tags remembered in one scope.
    """

    def __init__(self, names: Names, *, retention: float, max_stamps: int) -> None:
        self._names = names
        self.stream = b""
        """Where the changed stamps are told to who cannot follow them; empty: nowhere."""
        self.channel = b""
        """The same in a cluster, where no stream lies in every slot."""
        self._limits: tuple[Word, ...] = (int(retention * 1_000_000), max_stamps, MAX_TOGETHER)

    def words(self, scope: str, targets: Iterable[tuple[Target, int | None]]) -> tuple[Word, ...]:
        """What stands behind EVAL and the script. Each target with its stamp, or None for a new one."""
        names = self._names
        whole = names.stamp(scope, WHOLE_SCOPE)
        keys = [names.position(scope), names.index(scope), whole, names.floor(scope)]
        arguments: list[Word] = []
        for target, stamp in targets:
            key, name, how = self._aimed(scope, whole, target)
            keys.append(key)
            arguments += [name, how, b"" if stamp is None else stamp]
        return (len(keys), *keys, *self._limits, *arguments, self.stream, STREAMED, _NAMED, self.channel)

    def _aimed(self, scope: str, whole: bytes, target: Target) -> tuple[bytes, bytes, bytes]:
        tags, soft = (target.tags, target.soft) if isinstance(target, Aim) else ((target,), False)
        first, *others = tags
        key = self._names.stamp(scope, first)
        if key == whole:
            return whole, b"", b"~" if soft else b""
        prefix = len(whole) - 1
        how = b"&" + b",".join(self._names.stamp(scope, tag)[prefix:] for tag in others) if others else b""
        return key, key[prefix:], b"~" + how if soft else how
