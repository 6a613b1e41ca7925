"""The stage: the processes of one home, started, killed, stopped, restarted and buried by their process ids."""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lemegeton.testing.checker import lost
from lemegeton.testing.history import History, load, tell
from lemegeton.testing.violation import Violation

WORKER = Path(__file__).with_name("worker.py")
READY_S = 20.0
DELIVERED_S = 15.0
LOOK_S = 0.1
PIPE_BYTES = 64 * 1024


class StageError(Exception):
    """A process did not do what every process must: start, answer, end in good order."""


@dataclass(eq=False)
class Life:
    """One process life and what it has said."""

    name: str
    inc: str
    process: subprocess.Popen[bytes]
    said: list[dict[str, Any]] = field(default_factory=list)
    rest: bytes = b""
    stopped: bool = False
    buried: bool = False

    @property
    def alive(self) -> bool:
        return not self.buried and self.process.poll() is None

    def heard(self, word: str) -> bool:
        """True if it has said this."""
        return any(word in answer for answer in self.said)

    def do(self, **command: Any) -> None:
        """Send a command; one that is dead does not hear it."""
        if self.buried:  # its pipe is closed
            return
        try:
            os.write(self.process.stdin.fileno(), json.dumps(command).encode() + b"\n")  # type: ignore[union-attr]
        except OSError:
            return


class Stage:
    """The processes of one home.  ``cast`` names them: what each is, and how a new life of it begins."""

    def __init__(
        self, root: Path, cast: dict[str, dict[str, Any]], settings: dict[str, Any], rng: random.Random,
        counts: Counter[str], *, home: Path | None = None, site: str = "s1"
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.home = home or root / "home"
        self.cast = cast
        self.rng = rng
        self.counts = counts
        self.trouble: list[str] = []
        self._settings = settings
        self.site = site
        self._born = 0
        self._lives: dict[str, Life] = {}
        self._others: list[Life] = []
        self._orphans: list[int] = []
        self._selector = selectors.DefaultSelector()
        self.history = History(root / "harness.jsonl", inc="harness", site=site)

    # ------------------------------------------------------------------------------------------ lives

    def life(self, name: str) -> Life:
        """The present life of one of the cast."""
        return self._lives[name]

    def of(self, role: str) -> list[Life]:
        """The present lives that are of this role and alive."""
        return [life for name, life in self._lives.items() if self.cast[name]["role"] == role and life.alive]

    def spawn(self, name: str, **more: Any) -> Life:
        """Begin a process; it is ready when it says so."""
        self._born += 1
        inc = f"{name}.{self.site}.{self._born}"  # given ids begin with it: two homes must not share one
        spec = {"name": name, "inc": inc, "site": self.site, "home": str(self.home), "settings": self._settings,
                "history": str(self.root / f"{inc}.jsonl"), "seed": self.rng.randrange(2**32),
                **self.cast[name], **more}
        with (self.root / f"{inc}.err").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, bufsize=0)
        life = Life(name, inc, process)
        os.set_blocking(process.stdout.fileno(), False)  # type: ignore[union-attr]
        self._selector.register(process.stdout, selectors.EVENT_READ, life)  # type: ignore[arg-type]
        return life

    def start(self, *names: str) -> None:
        """Begin lives of the cast at once and wait until all are ready."""
        for name in names:
            self._lives[name] = self.spawn(name)
        self.wait(lambda: all(self._lives[n].heard("ready") or not self._lives[n].alive for n in names), READY_S,
                  f"{', '.join(names)} to be ready")

    def begin(self, name: str) -> None:
        """Begin a life of one of the cast and do not wait for it."""
        self._lives[name] = self.spawn(name)

    def revive(self) -> None:
        """Begin a new life of everyone who is dead, in any order."""
        for _ in range(5):
            dead = [name for name in self.cast if name not in self._lives or not self._lives[name].alive]
            if not dead:
                return
            self.rng.shuffle(dead)
            self.start(*dead)
            self.bury()
        raise StageError("some processes die at every start")

    # ------------------------------------------------------------------------------------------ signals

    def kill(self, life: Life) -> None:
        """SIGKILL; the process id is our own child's, so it cannot be anybody else's by now."""
        if life.alive:
            life.process.send_signal(signal.SIGKILL)
            life.process.wait()

    def stop(self, life: Life) -> bool:
        """SIGSTOP; false if it was dead, or was just killing itself, so that nothing stands still."""
        if not life.alive:
            return False
        life.process.send_signal(signal.SIGSTOP)
        state = os.waitid(os.P_PID, life.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        life.stopped = state is not None and state.si_code == os.CLD_STOPPED
        return life.stopped

    def go_on(self, life: Life) -> None:
        """SIGCONT."""
        if life.alive:
            life.process.send_signal(signal.SIGCONT)
        life.stopped = False

    def drain(self, life: Life) -> None:
        """Have a process end in good order."""
        life.do(do="stop")
        self.wait(lambda: not life.alive, READY_S, f"{life.name} to stop")

    # ------------------------------------------------------------------------------------------ listening

    def pump(self, timeout_s: float) -> None:
        """Hear what is said within ``timeout_s``, and bury the dead."""
        for key, _ in self._selector.select(timeout_s):
            self._hear(key.data)
        self.bury()

    def _hear(self, life: Life) -> None:
        try:
            data = os.read(life.process.stdout.fileno(), PIPE_BYTES)  # type: ignore[union-attr]
        except BlockingIOError:
            return
        *lines, life.rest = (life.rest + data).split(b"\n")
        life.said += map(json.loads, lines)
        if not data:
            self._selector.unregister(life.process.stdout)  # type: ignore[arg-type]

    def wait(self, what: Callable[[], bool], timeout_s: float, name: str) -> None:
        """Hear the processes until ``what`` holds; `StageError` after the timeout."""
        deadline = time.monotonic() + timeout_s
        while not what():
            if time.monotonic() > deadline:
                raise StageError(f"waited {timeout_s} s for {name}")
            self.pump(0.01)

    def bury(self) -> None:
        """Write down who was killed; an end of any other kind but a wanted one is trouble."""
        for life in [*self._lives.values(), *self._others]:
            if life.buried or life.process.poll() is None:
                continue
            life.buried = True
            code = life.process.returncode
            if code == -signal.SIGKILL:
                self.history.record("fault", kind="kill", inc=life.inc)
            elif code:
                errors = (self.root / f"{life.inc}.err").read_text(errors="replace")
                self.trouble.append(f"{life.inc} ended with {code}: {errors[-2000:]}")
            life.process.stdin.close()  # type: ignore[union-attr]

    # ------------------------------------------------------------------------------------------ others

    def rival(self, name: str) -> None:
        """A second process asks for the durable names of a stopped one; every one must be refused."""
        life = self.spawn(name, rival=True)
        self._others.append(life)
        self.wait(lambda: not life.alive, READY_S, "the rival to end")
        self.pump(0)
        verdicts = [answer["rival"] for answer in life.said]
        if verdicts != ["refused"] * len(self.cast[name]["subscriptions"]):
            self.trouble.append(f"a second holder of the names of {name}: {verdicts}")

    def orphan(self, name: str, free_s: float) -> None:
        """Fork a child, kill its parent, and take the parent's names while the child lives."""
        life = self.life(name)
        life.do(do="fork")
        self.wait(lambda: life.heard("child") or not life.alive, READY_S, "a forked child")
        told = next((answer for answer in life.said if "child" in answer), None)
        if told is None:
            return
        self._orphans.append(told["child"])
        if told["verdict"] != "refused":
            self.trouble.append(f"the bus of a forked child of {name}: {told['verdict']}")
        life.process.send_signal(signal.SIGKILL)
        life.process.wait()
        begun = time.monotonic()
        life.buried = True  # by hand: its stdin stays open, or the child would end with it
        self.history.record("fault", kind="kill", inc=life.inc)
        self.start(name)
        took = time.monotonic() - begun
        if took > free_s:
            self.trouble.append(f"the names of {name} were free {took:.1f} s after its death, a forked child alive")
        try:
            os.kill(told["child"], 0)
        except ProcessLookupError:
            self.trouble.append(f"the forked child of {name} did not outlive it: nothing was shown")
        life.process.stdin.close()  # type: ignore[union-attr]  # ends the child

    # ------------------------------------------------------------------------------------------ judging

    def histories(self) -> list[Path]:
        """The history files of every life so far."""
        return sorted(self.root.glob("*.jsonl"))

    def settle(self) -> None:
        """Wait until everything acknowledged is delivered, at most `DELIVERED_S`; the checker says what is not."""
        self.history.record("quiet")
        deadline = time.monotonic() + DELIVERED_S
        while time.monotonic() < deadline:
            self.pump(LOOK_S)
            if not any(lost(tell(load(self.histories())), False)):
                return

    def finish(self) -> None:
        """Have everybody who lives end in good order: whoever was broken inside says so now."""
        lives = [life for life in self._lives.values() if life.alive]
        for life in lives:
            life.do(do="stop")
        self.wait(lambda: not any(life.alive for life in lives), READY_S, "everybody to stop")
        self.pump(0)

    def close(self) -> None:
        """End every process that this stage began."""
        for life in [*self._lives.values(), *self._others]:
            self.kill(life)
            if life.process.stdin is not None:
                life.process.stdin.close()
            if life.process.stdout is not None:
                life.process.stdout.close()
        self._selector.close()
        self.history.close()


def trouble_of(stage: Stage) -> list[Violation]:
    """What the processes themselves did wrong, in the checker's words."""
    return [Violation("process", text, ()) for text in stage.trouble]
