"""Bugs of the relay, its script, its marks, sending again, sharing and reading, which only sites that share a Redis show.

Those of the script are planted in its counterpart: the simulated Redis does not know a text that was changed.

No seed can meet a fork, which takes two homes under one site id, and with them two messages in one place by right: the
tests of the relay catch `FORK_MUTANTS`, which are not in the table.
"""

from __future__ import annotations

from lemegeton.testing.planting import Change, Mutant

SCRIPTS = "testing/fake_redis_scripts.py"
FORGETS = ("redis_empty", "redis_flush", "redis_stream_gone", "redis_evicts", "redis_clock")
GOES_BACK = ("redis_failover", "redis_restored", "redis_killed", "redis_frozen")
REFUSES = ("redis_full", "redis_replica", "redis_reset", "redis_client_kill")

NO_PROBE = Change("relaying.py", "                await self._probe()\n", "")
NO_REQUEST = Change("logs/redis_scan.py", "await self._ask(feed, lane, after + 1, hole.through):", "after < 0:")


def _redis(name: str, file: str, old: str, new: str, *faults: str, healers: tuple[Change, ...] = ()) -> Mutant:
    return Mutant(name, file, old, new, True, faults, healers)


SCRIPT_MUTANTS = (
    _redis("plain XADD, no order asked", SCRIPTS, "if number(seq) > last + 1 and not base:", "if number(seq) < 0:", *FORGETS),
    _redis("no mark is looked at", SCRIPTS, "        if number(through) > last:\n", "        if number(through) >= 0:\n",
           "redis_reset"),
    _redis("marks outlive their stream", SCRIPTS, "if mark is None or not there or not", "if mark is None or not", *FORGETS),
    _redis("marks of other lanes outlive their stream", SCRIPTS, '        call(b"DEL", marks)\n', "        pass\n", *FORGETS),
    _redis("mark moved without the append", SCRIPTS, '            call(b"XADD", stream,',
           '            number(seq) % 7 == 0 or call(b"XADD", stream,'),
    _redis("refills are published", SCRIPTS, "if wire and number(seq) > told:", "if wire:", *FORGETS),
    _redis("streams are cut short", "logs/redis_replica.py", "length * HARD_LENGTH", "1", "away", "redis_cut_off",
           healers=(NO_REQUEST,)),
    _redis("stream trimmed by length", SCRIPTS,
           "            break\n        gone.append(ident)", "            pass\n        gone.append(ident)"),
)

RELAY_MUTANTS = (
    _redis("no probe", *NO_PROBE, *FORGETS),
    _redis("nothing is asked at a reconnect", "relay.py", "        self._places.clear()\n", "        pass\n",
           "redis_empty", *GOES_BACK, healers=(NO_PROBE,)),
    _redis("an error counts as accepted", "relay.py", "        answer = await flight.answer\n        if not",
           "        try:\n            answer = await flight.answer\n        except Exception:\n"
           "            answer = Answer(Mark(flight.last.through, _checksum(flight.last)))\n        if not", *REFUSES),
    _redis("a gap counts as accepted", "relay.py",
           "if not answer.gap and answer.mark == Mark(flight.last.through, _checksum(flight.last)):",
           "if answer.mark.seq >= 0:", *FORGETS),
    _redis("every offer is a base", "relay.py", "base=ahead.base, told", "base=True, told", *FORGETS),
    _redis("told marks go back", "relaying.py", "self._marks.cells[settled_at(row)] < seq:", "seq > 0:", *GOES_BACK),
    _redis("expired records leave holes", "relay.py",
           "        else:\n            items.append(_marked(SKIP, head.seq, head.seq))\n", "        else:\n            pass\n"),
    _redis("damaged records leave holes", "relay.py", "            items.append(_marked(GONE, following, head.seq - 1))\n",
           "            pass\n", "rot", "torn"),
    _redis("the local Redis counts as the shared one", "redis_side.py", "Quiet(self))", "self)", "local_redis_lost"),
    _redis("nobody helps a dead sender", "bridge.py", "= await self._relay.copy(lane)\n", "= mark\n", "kill", "kill_site"),
    _redis("a helper does not know what was told", "relaying.py", "return _copied(fs, ",
           "return VolatileMarks() or _copied(fs, ", *FORGETS),
)

SHARING_MUTANTS = (
    _redis("nothing is sent again", "resending.py", "                await self._send(lane, site, first, last)\n",
           "                pass\n", "redis_entry_gone"),
    _redis("what is asked for is said to be gone", "resending.py", "return wanted or [_gone(first, last)]",
           "return [_gone(first, last)]", "redis_entry_gone"),
    _redis("settled of one site counts for all", "sharing.py", "limits[lane] = min(settled)", "limits[lane] = max(settled)"),
    _redis("a bridge trims without asking its own site", "bridge.py", "marks[channel], everybody, acks)",
           "marks[channel], holders, acks)"),
    _redis("retention forgets other sites", "logs/janitor.py", "[*holders, *elsewhere]", "holders",
           "redis_entry_gone", *FORGETS),
    _redis("retention does not wait for the relay", "logs/janitor.py", "self._policy, relayed)", "self._policy, None)"),
)

READING_MUTANTS = (
    _redis("no anti-entropy", "logs/redis.py", "self._rings if everything else looking & self._rings.keys()",
           "looking & self._rings.keys()", "redis_output_limit", "redis_cut_off", "redis_client_kill"),
    _redis("no scan from the beginning", "logs/redis_scan.py",
           "places = [(stream, ident), (stream, 0)] if ident else [(stream, 0)]", "places = [(stream, ident)]",
           "redis_clock", healers=(NO_REQUEST,)),
    _redis("no request to send again", *NO_REQUEST, "redis_entry_gone"),
    _redis("a hole is stepped over", "logs/redis_scan.py", "elif entry.head.seq > after + 1 and not sparse:", "elif False:",
           "redis_entry_gone"),
    _redis("a doorbell is believed over a hole", "logs/redis_feed.py",
           "if kept is None or not kept.first <= after + 1 < kept.following:",
           "if kept is None or not after + 1 < kept.following:"),
    _redis("a marker stands for one record", "logs/redis_entries.py",
           "through = max(head.seq, head.through if head.type in (SKIP, GONE) else 0)", "through = head.seq", "rot",
           "torn", "clock", healers=(NO_REQUEST,)),
    _redis("the mode picks the log", "logs/joined.py", "        return site_of(lane.origin) == self._site\n",
           "        return site_of(lane.origin) == self._site and not self._redis._link.up\n"),
    _redis("an earlier incarnation is left at once", "logs/redis.py", "            return settled >= after[2]\n",
           "            return True\n", "power", "torn"),
)

FORK_MUTANTS = (
    _redis("a fork is not looked for", "relay.py", "if mark.seq and not await self._is_ours(lane, mark):",
           "if mark.seq < 0 and not await self._is_ours(lane, mark):"),
    _redis("a fork is only looked at by number", "relay.py", "        return crc32(found[0]) == mark.crc\n",
           "        return len(found) > 0\n"),
)

REDIS_MUTANTS = (*SCRIPT_MUTANTS, *RELAY_MUTANTS, *SHARING_MUTANTS, *READING_MUTANTS)
