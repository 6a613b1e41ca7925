"""``completion``: what a shell needs to complete verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell, for example: eval "$(lemegeton completion bash)"."""
    found = get_completion_class(shell)
    assert found is not None, "every choice has a class"
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "lemegeton", "_LEMEGETON_COMPLETE").source())
