"""The takeover: where the next owner of an origin goes on in a lane.

A lane whose last segment was written in this boot and ends in a valid line is continued.  Anything else, and a lane
that is not there yet, begins a new incarnation, whose first record says where the one before it ended.
"""

from __future__ import annotations

from lemegeton.errors import LogError
from lemegeton.events import IncarnationBegun, Observer
from lemegeton.lane import Lane
from lemegeton.logs.lanes import LaneWriter
from lemegeton.logs.origin import Origin
from lemegeton.logs.segments import SegmentFiles, end_of, last_sequence, log_error
from lemegeton.seams import Fs
from lemegeton.segment import SegmentName, parse_segment_name


class Takeover:
    """Opens the lanes of one origin; all that begin anew share one incarnation, as far as that is free."""

    def __init__(self, fs: Fs, files: SegmentFiles, origin: Origin, observe: Observer, line_bytes_max: int) -> None:
        self._fs = fs
        self._files = files
        self._origin = origin
        self._observe = observe
        self._line_bytes_max = line_bytes_max
        self._inc = 0

    def open_lane(self, channel: str, priority: int) -> LaneWriter:
        """Go on where the last owner stopped, if its end can be trusted; else in a new incarnation."""
        try:
            last = self._last_segment(channel, priority)
            return (self._continued(channel, last) if last else None) or self._begun(channel, priority, last)
        except OSError as error:
            if isinstance(error, LogError):
                raise
            raise log_error(f"append to {channel}", error) from error

    def _last_segment(self, channel: str, priority: int) -> SegmentName | None:
        names = map(parse_segment_name, self._fs.listdir(self._files.make_directory(channel)))
        ours = [n for n in names if n is not None and n.origin == self._origin.name and n.priority == priority]
        return max(ours, key=lambda n: (n.inc, n.first), default=None)

    def _continued(self, channel: str, last: SegmentName) -> LaneWriter | None:
        if not self._origin.continuable(last.inc):
            return None
        lane = Lane(channel, last.origin, last.inc, last.priority)
        segment = self._files.adopt(f"{self._files.directory(channel)}/{last}", last.first)
        seq = last_sequence(self._fs, segment, lane, self._line_bytes_max)
        if seq is None:
            self._files.close(segment)
            return None
        # A segment that holds only what was written again after a failed sync ends below the numbers given before it.
        return LaneWriter(lane, max(seq + 1, last.first), segment)

    def _begun(self, channel: str, priority: int, last: SegmentName | None) -> LaneWriter:
        above = last.inc if last else 0
        if self._inc <= above:
            self._inc = self._origin.fresh(above)
        writer = LaneWriter(Lane(channel, self._origin.name, self._inc, priority), 1, None)
        if last:
            writer.after = self._end_of(channel, last)
            self._observe(IncarnationBegun(writer.lane, f"{last} was not continued: other boot or torn end"))
        return writer

    def _end_of(self, channel: str, last: SegmentName) -> bytes:
        """What the first record of a new incarnation says of the one before it; nothing where that cannot be told."""
        segment = self._files.adopt(f"{self._files.directory(channel)}/{last}", last.first)
        lane = Lane(channel, last.origin, last.inc, last.priority)
        try:
            seq = end_of(self._fs, segment, lane, last.first)
        finally:
            self._files.close(segment)
        return b"" if seq is None else after_text(lane, seq)


def after_text(lane: Lane, seq: int) -> bytes:
    """``after``: that a lane ended here, as JSON."""
    return b'["%b",%d,%d]' % (lane.origin.encode(), lane.inc, seq)
