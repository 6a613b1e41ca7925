"""``lemegeton``: finds the verb, gives it the global options, and turns how it ended into a code and a line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from lemegeton import __version__
from lemegeton.cli.output import (
    DONE,
    FAILED,
    INTERRUPTED,
    TIMED_OUT,
    USAGE,
    Ended,
    Options,
    say,
)

VERBS = {
    "demo": "demo",
    "pub": "messages",
    "sub": "messages",
    "request": "requests",
    "history": "looking",
    "status": "looking",
    "subs": "looking",
    "dlq": "dlq",
    "bridge": "reaching",
    "mode": "modes",
    "hub": "hubs",
    "agent": "hubs",
    "assign": "hubs",
    "completion": "shells",
}
"""Each verb and the module that has it: only the one that is asked for is loaded."""


ADVICE = {
    errno.EMFILE: "; raise the limit of open files (ulimit -n)", errno.ENFILE: "; this machine has too many open files",
    errno.ENOSPC: "; free disk space", errno.EROFS: "; choose another home with --home or LEMEGETON_HOME",
}
"""What to do about an error of the system."""


class Verbs(click.Group):
    """A group whose commands are loaded by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        try:
            command: click.Command = getattr(import_module(f"lemegeton.cli.{VERBS[cmd_name]}"), cmd_name)
        except KeyboardInterrupt:
            raise Ended(INTERRUPTED, "interrupted") from None
        return _with_globals(command)


def _with_globals(command: click.Command) -> click.Command:
    """Global options are understood behind the verb as well; there they are not shown again."""
    if isinstance(command, click.Group):
        for part in command.commands.values():
            _with_globals(part)
    elif not any(parameter.name == "home" for parameter in command.params):
        command.params += [_home(hidden=True), _redis_url(hidden=True), _json(hidden=True)]
    return command


def _set(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        setattr(ctx.obj, str(parameter.name), value)


def _home(*, hidden: bool = False) -> click.Option:
    return click.Option(
        ["--home"], metavar="DIR", hidden=hidden, expose_value=False, callback=_set,
        help="Directory that holds everything; without it LEMEGETON_HOME, else the nearest .lemegeton upwards.")


def _redis_url(*, hidden: bool = False) -> click.Option:
    return click.Option(
        ["--redis-url"], metavar="URL", hidden=hidden, expose_value=False, callback=_set_redis_url,
        help="The shared Redis; without it LEMEGETON_REDIS_URL.  A password is safer there than on a command line.")


def _set_redis_url(_: click.Context, __: click.Parameter, value: str | None) -> None:
    """Processes that a verb begins use it as well."""
    if value:
        os.environ["LEMEGETON_REDIS_URL"] = value


def _json(*, hidden: bool = False) -> click.Option:
    return click.Option(
        ["--json"], is_flag=True, hidden=hidden, expose_value=False, callback=_set,
        help="Print JSON lines, as is done anyway where standard output is not a terminal.")


@click.command(
    "lemegeton", cls=Verbs, no_args_is_help=False, params=[_home(), _redis_url(), _json()],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 timed out, 130 interrupted, 143 terminated.")
@click.version_option(__version__, prog_name="lemegeton")
def cli() -> None:
    """A message bus for one hub and its agents: nothing that was published is lost, with or without a server."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program."""
    sys.exit(outcome(sys.argv[1:] if arguments is None else arguments))


def outcome(arguments: Sequence[str]) -> int:
    """Run a command line; its exit code.  What went wrong is on standard error, in one line."""
    try:
        code = cli.main(args=list(arguments), prog_name="lemegeton", standalone_mode=False, obj=Options())
    except BaseException as error:
        return _explained(error)
    return code if isinstance(code, int) else DONE


def _explained(error: BaseException) -> int:
    """The code for an error, after saying what it was; an error that nobody foresaw is raised again."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return _explained(error.exceptions[0])
    if isinstance(error, Ended):
        if str(error):
            say(str(error))
        return error.code
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        say("interrupted")
        return INTERRUPTED
    return _failure(error)


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    where = context.command_path.removeprefix("lemegeton").strip() if context else ""
    line = error.format_message().rstrip(".") or "a verb is missing"
    say(f"{where}: {line}; see lemegeton {where} --help" if where else f"{line}; see lemegeton --help")
    return USAGE if isinstance(error, click.UsageError) else FAILED


def _failure(error: BaseException) -> int:
    from lemegeton.errors import InvalidMessage, InvalidSetting, LemegetonError, NoReply, NotReached

    if isinstance(error, LemegetonError):
        say(str(error))
        if isinstance(error, InvalidMessage | InvalidSetting):
            return USAGE
        return TIMED_OUT if isinstance(error, NotReached | NoReply) else FAILED
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        say(f"{place}{error.strerror or error}{ADVICE.get(error.errno or 0, '')}")
        return FAILED
    raise error
