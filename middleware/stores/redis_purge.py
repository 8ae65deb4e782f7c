"""The script that makes a purge in one scope of the ledger: see `redis` for what the keys are."""

from hashlib import sha1
from typing import Final

__all__ = ["PURGE", "PURGE_SHA"]

PURGE: Final = """#!lua flags=allow-oom
-- KEYS: position, index, whole scope, floor, tags' stamps.
-- ARGV: retention (us), most stamps, tags' names; no name: the whole scope.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local stamp = now
if stamp <= last then stamp = last + 1 end
local text = string.format('%.0f', stamp)
redis.call('SET', KEYS[1], text)
for i = 3, #ARGV do
  redis.call('SET', KEYS[i + 2], text)
  redis.call('ZADD', KEYS[2], text, ARGV[i])
end
local raised = math.max(tonumber(redis.call('GET', KEYS[3]) or '0'), tonumber(redis.call('GET', KEYS[4]) or '0'))
local trimmed = 0
if #ARGV == 2 then
  redis.call('SET', KEYS[3], text)
  raised = stamp
end
-- Let go of more than came in, so that the index shrinks to its limit, and of a bounded number, so that nobody waits.
local surplus = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[2])
local oldest = redis.call('ZRANGE', KEYS[2], 0, #ARGV + 100, 'WITHSCORES')
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
if trimmed > 0 then redis.call('SET', KEYS[4], string.format('%.0f', trimmed)) end
local prefix = string.sub(KEYS[3], 1, -2)
for _, tag in ipairs(gone) do
  redis.call('DEL', prefix .. tag)
  redis.call('ZREM', KEYS[2], tag)
end
return text
"""

PURGE_SHA: Final = sha1(PURGE.encode()).hexdigest()
