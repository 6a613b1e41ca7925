"""Bugs of the bus on files, each of which the simulation has to find."""

from __future__ import annotations

from lemegeton.testing.planting import Change, Mutant

NO_POLL = Change("delivery.py", "next_poll = loop.time() + self._interval(0.0)", "next_poll = loop.time() + 1e9")

FILE_MUTANTS: tuple[Mutant, ...] = (
    Mutant("no intent mark", "handling.py", "                    marks.cells[at + 1] = seq\n", "                    pass\n"),
    Mutant("settled before the handler", "handling.py", '                _set(message, "channel", lane.channel)\n',
           '                marks.cells[at] = seq\n                _set(message, "channel", lane.channel)\n'),
    Mutant("flag everything", "handling.py", "if message.seq <= place.flagged or", "if message.seq > 0 or"),
    Mutant("never flag", "handling.py", "if message.seq <= place.flagged or in_doubt:", "if message.seq < 0:"),
    Mutant("dead letter, not settled", "handling.py",
           "        place.forget_trouble()\n        return Outcome.DONE\n\n    def _dead_letter",
           "        place.forget_trouble()\n        return Outcome.LATER\n\n    def _dead_letter"),
    Mutant("id window not consulted", "handling.py",
           "if (place.lane.channel, message.id, self._wall_ms()) in self._window:", "if not message.id:"),
    Mutant("id window not persisted", "window.py", "            if self._path is not None:\n                self._store",
           "            if self._path is None:\n                self._store"),
    Mutant("attempts keep the cursor", "delivery.py",
           "            if outcome is not Outcome.DONE:\n                place.cursor = None\n",
           "            if outcome is not Outcome.DONE:\n"),
    Mutant("start new for late lanes", "delivery.py", 'await self._add_channel(channel, "earliest")',
           "await self._add_channel(channel, self._start)"),
    Mutant("poll removed", *NO_POLL),
    Mutant("ring during a turn forgotten", "crew.py", "if more or chain.rung:", "if more:", healers=(NO_POLL,)),
    Mutant("lost wake-up of workers", "crew.py", "self._wake(self._idle.pop())", "self._idle.pop()"),
    Mutant("flags of a reboot forgotten", "delivery.py", "cells[settled_at(row) + 1] = flagged", "pass"),
    Mutant("later incarnation at once", "delivery.py", "            place = chain.lanes[0]\n            later_known",
           "            while len(chain.lanes) > 1:\n                chain.lanes.popleft()\n"
           "            place = chain.lanes[0]\n            later_known", faults=("power", "torn")),
    Mutant("later segment before the end", "logs/reader.py", "        first, offset = cursor\n",
           "        first, offset = cursor\n        if self._later(lane, first) is not None:\n"
           "            first, offset = self._later(lane, first) or 1, 0\n"),
    Mutant("checksum not looked at", "segment.py",
           'return wire if line[:9] == b"%08x " % crc32(wire) else None', "return wire", faults=("rot",)),
    Mutant("goes on behind a torn tail", "logs/segments.py", '        if not data.endswith(b"\\n"):\n            return None\n',
           '        data = data[: data.rfind(b"\\n") + 1]\n', faults=("torn", "kill_in_call")),
    Mutant("goes on after another boot", "logs/origin.py", "return inc > self._floor", "return inc > 0"),
    Mutant("incarnation not synced", "logs/origin.py", "        self._fs.fsync(self._fd)\n", ""),
    Mutant("origin lock shared", "logs/origin.py", "if fs.lock(fd):", "if fs.lock(fd, shared=True):"),
    Mutant("failed group keeps its numbers", "logs/writer.py", "            writer.next = entries[0].seq\n",
           "            pass\n", faults=("full", "failing_call")),
    Mutant("short write not sealed", "logs/writer.py",
           '                self.seal(writer, f"short write of {written} bytes")\n                return entries[done:]',
           "                return entries[done:]", faults=("bad_disk", "full")),
    Mutant("failed sync tried again", "logs/sync.py",
           "                segment.moved = self._reappend(wanted.writer, segment)\n"
           "                segment = segment.moved\n", "                segment.failed = False\n", faults=("bad_disk",)),
    Mutant("disk without a sync", "logs/file.py", "priority, made, disk)", "priority, made, False)"),
    Mutant("directories not synced", "logs/sync.py", "if not segment.entry_synced:", "if segment.fd < 0:"),
    Mutant("retention ignores a holder", "retention.py", "holder.settled(segment.lane) < segment.last:\n            return",
           'holder.settled(segment.lane) < segment.last and not holder.name.endswith("0"):\n            return'),
    Mutant("retention by age", "retention.py",
           "blocking = None if segment.final else _blocking(segment, blockers)",
           "blocking = None if segment.final or now_ms - segment.modified_ms > 5000 else _blocking(segment, blockers)"),
    Mutant("a reply ends any request", "requesting.py", "        pending = self._open.find(correlation)\n",
           "        pending = self._open.find(next(iter(self._open._pending), correlation))\n"),
    Mutant("a request waits for ever", "requesting.py", "async with within(timeout_s):", "async with within(None):"),
    Mutant("durable name not exclusive", "checkpoint.py", "if not fs.lock(self._lock):",
           "if not fs.lock(self._lock, shared=True):"),
)
