"""The scripts: what has to happen in a Redis at once or not at all."""

from __future__ import annotations

from lemegeton.logs.redis_link import Script

FORWARD = Script("""
-- KEYS stream, marks; ARGV lane, base 0/1, told, channel, length; per item: seq, through, crc, wire, n, field, value …
-- XADD before PUBLISH: a doorbell for an entry that is not there yet would wake the reader for nothing.
local mark = redis.call('HGET', KEYS[2], ARGV[1])
if mark and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])  -- the stream was deleted: the marks of all its lanes are about nothing
  mark = false
end
mark = mark or '0:0'
local last, told, base, i = tonumber(string.match(mark, '^%d+')), tonumber(ARGV[3]), ARGV[2] == '1', 6
while i <= #ARGV do
  local n = tonumber(ARGV[i + 4])
  if tonumber(ARGV[i + 1]) > last then
    if tonumber(ARGV[i]) > last + 1 and not base then return {'GAP', mark} end
    base = false
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], '*', unpack(ARGV, i + 5, i + 4 + n))
    if ARGV[i + 3] ~= '' and tonumber(ARGV[i]) > told then redis.call('PUBLISH', ARGV[4], ARGV[i + 3]) end
    last, mark = tonumber(ARGV[i + 1]), ARGV[i + 1] .. ':' .. ARGV[i + 2]
  end
  i = i + 5 + n
end
if #ARGV > 5 then redis.call('HSET', KEYS[2], ARGV[1], mark) end
return {'OK', mark}
""")
"""Append consecutive records of a lane and move its mark; with no items it only answers the mark."""

TRIM = Script("""
-- KEYS stream; ARGV keep, batch, then lane, settled …; removes settled entries from the head while more than keep are left
local settled = {}
for i = 3, #ARGV, 2 do settled[ARGV[i]] = tonumber(ARGV[i + 1]) end
local left, gone = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1]), {}
if left <= 0 then return 0 end
local head = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(left, tonumber(ARGV[2])))
local cut
for _, entry in ipairs(head) do
  local f = {}
  for i = 1, #entry[2], 2 do f[entry[2][i]] = entry[2][i + 1] end
  local last = settled[(f.origin or '') .. '.' .. (f.inc or '') .. '.' .. (f.priority or '1')]
  if last and tonumber(f.through or f.seq) > last then break end
  cut = entry[1]
  gone[#gone + 1] = cut
end
if cut then redis.call('XDEL', KEYS[1], unpack(gone)) end
return #gone
""")
"""Trim by what was settled, never by an id.  A lane that is not named holds nothing."""
