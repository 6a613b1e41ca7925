"""The scripts: what has to happen in a Redis at once or not at all."""

from __future__ import annotations

from lemegeton.logs.redis_link import Script

FORWARD = Script("""
-- KEYS stream, marks; ARGV lane, base 0/1, told, channel, length; per item: seq, through, crc, wire, n, field, value …
-- XADD before PUBLISH: a doorbell for an entry that is not there yet would wake the reader for nothing.
local mark, there = redis.call('HGET', KEYS[2], ARGV[1]), redis.call('EXISTS', KEYS[1]) == 1
local digits = mark and string.match(mark, '^(%d+):')
if not digits or #digits > 16 or not there then mark = '0:0' end
if #ARGV == 5 then return {'OK', mark} end
-- The stream was deleted: the marks of all its lanes are about nothing.  Now, as the next lane finds a stream again.
if not there then redis.call('DEL', KEYS[2]) end
local last, told, base = tonumber(string.match(mark, '^%d+')), tonumber(ARGV[3]), ARGV[2] == '1'
local answer, moved, i = 'OK', false, 6
while i <= #ARGV do
  local seq, through, n = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 4])
  if through > last then
    if seq > last + 1 and not base then answer = 'GAP' break end
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], '*', unpack(ARGV, i + 5, i + 4 + n))
    if ARGV[i + 3] ~= '' and seq > told then redis.call('PUBLISH', ARGV[4], ARGV[i + 3]) end
    base, moved, last, mark = false, true, through, ARGV[i + 1] .. ':' .. ARGV[i + 2]
  end
  i = i + 5 + n
end
if moved then redis.call('HSET', KEYS[2], ARGV[1], mark) end
return {answer, mark}
""")
"""Append consecutive records of a lane and move its mark; with no items it only answers the mark."""

TRIM = Script("""
-- KEYS stream; ARGV keep, batch, then lane, settled …; removes settled entries from the head while more than keep are left
local settled = {}
for i = 3, #ARGV, 2 do settled[ARGV[i]] = tonumber(ARGV[i + 1]) end
local left, gone = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1]), {}
if left <= 0 then return 0 end
local head = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(left, tonumber(ARGV[2])))
for _, entry in ipairs(head) do
  local f = {}
  for i = 1, #entry[2], 2 do f[entry[2][i]] = entry[2][i + 1] end
  local last = settled[(f.origin or '') .. '.' .. (f.inc or '') .. '.' .. (f.priority or '1')]
  if not last and (f.origin or '') ~= '' then last = 0 end
  local marker = f.type == 'skip' or f.type == 'gone'  -- in any other a field `through` is the sender's own
  if last and (tonumber(marker and f.through or f.seq) or 0) > last then break end
  gone[#gone + 1] = entry[1]
end
if #gone > 0 then redis.call('XDEL', KEYS[1], unpack(gone)) end
return #gone
""")
"""Trim by what was settled, never by an id.  A lane that is not named came after whoever trims looked: nothing of it goes."""
