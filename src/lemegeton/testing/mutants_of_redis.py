"""Bugs of the relay, its script, its marks, sending again, sharing and reading, which only sites that share a Redis show."""

from __future__ import annotations

from lemegeton.testing.planting import Mutant

SCRIPTS = "testing/fake_redis_scripts.py"


def _redis(name: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, file, old, new, redis=True)


REDIS_MUTANTS: tuple[Mutant, ...] = (
    # the script, planted in its counterpart: the simulated Redis does not know a text that was changed
    _redis("plain XADD, no order asked", SCRIPTS, "if number(seq) > last + 1 and not base:", "if number(seq) < 0:"),
    _redis("no mark is looked at", SCRIPTS, "        if number(through) > last:\n", "        if number(through) >= 0:\n"),
    _redis("marks outlive their stream", SCRIPTS, "if mark is None or not there or not", "if mark is None or not"),
    _redis("marks of other lanes outlive their stream", SCRIPTS, '        call(b"DEL", marks)\n', "        pass\n"),
    _redis("mark moved without the append", SCRIPTS, '            call(b"XADD", stream,',
           '            number(seq) % 7 == 0 or call(b"XADD", stream,'),
    _redis("refills are published", SCRIPTS, "if wire and number(seq) > told:", "if wire:"),
    _redis("stream trimmed by length", SCRIPTS,
           "            break\n        gone.append(ident)", "            pass\n        gone.append(ident)"),
    # the relay
    _redis("no probe", "relaying.py", "                await self._probe()\n", ""),
    _redis("nothing is asked at a reconnect", "relay.py", "        self._places.clear()\n", "        pass\n"),
    _redis("an error counts as accepted", "relay.py",
           "            self._places.pop(lane, None)\n            for flight in flights:",
           "            for flight in flights:"),
    _redis("a gap counts as accepted", "relay.py",
           "if not answer.gap and answer.mark == Mark(flight.last.through, _checksum(flight.last)):",
           "if answer.mark.seq >= 0:"),
    _redis("a fork is not looked for", "relay.py", "if mark.seq and not await self._is_ours(lane, mark):",
           "if mark.seq < 0 and not await self._is_ours(lane, mark):"),
    _redis("a fork is only looked at by number", "relay.py", "crc32(found[0]) == mark.crc", "len(found) > 0"),
    _redis("base offered from anywhere", "relay.py", "Place(mark.seq + 1)\n", "Place(mark.seq + 1, None, True)\n"),
    _redis("told marks go back", "relaying.py", "self._marks.cells[settled_at(row)] < seq:", "seq > 0:"),
    _redis("expired records leave holes", "relay.py",
           "        else:\n            items.append(_marked(SKIP, head.seq, head.seq))\n", "        else:\n            pass\n"),
    _redis("nobody helps a dead sender", "bridge.py", "            marks[lane_field(lane)] = await self._relay.copy(lane)\n",
           "            pass\n"),
    # sharing and sending again
    _redis("nothing is sent again", "resending.py", "                await self._send(lane, site, first, last)\n",
           "                pass\n"),
    _redis("what is asked for is said to be gone", "resending.py", "return wanted or [_gone(first, last)]",
           "return [_gone(first, last)]"),
    _redis("settled of one site counts for all", "sharing.py", "limits[lane] = min(settled)", "limits[lane] = max(settled)"),
    # reading
    _redis("no anti-entropy", "logs/redis.py", "self._rings if everything else looking & self._rings.keys()",
           "looking & self._rings.keys()"),
    _redis("no scan from the beginning", "logs/redis_scan.py",
           "places = [(stream, ident), (stream, 0)] if ident else [(stream, 0)]",
           "places = [(stream, ident)]"),
    _redis("no request to send again", "logs/redis_scan.py",
           "await self._ask(feed, lane, after + 1, last):", "after < 0:"),
    _redis("a hole is stepped over", "logs/redis_scan.py", "elif entry.head.seq > after + 1 and not sparse:", "elif False:"),
    _redis("a doorbell is believed over a hole", "logs/redis_feed.py",
           "if kept is None or not kept.first <= after + 1 < kept.following:",
           "if kept is None or not after + 1 < kept.following:"),
    _redis("our own lanes are read from Redis as well", "logs/joined.py", "        return site_of(lane.origin) == self._site\n",
           "        return site_of(lane.origin) == self._site and lane.inc < 2\n"),
    _redis("an earlier incarnation is left at once", "logs/redis.py", "            return settled >= after[2]\n",
           "            return True\n"),
)
