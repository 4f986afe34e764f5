"""How the program ends: every expected error as one line and an exit code, and commands that load on demand."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NoReturn

import click

from shared.model.delta import printable
from shared.model.errors import CouldNotCheck, SettingsError, TargetError

_USAGE, _NOT_CHECKED, _INTERRUPTED, _BROKEN_PIPE = 2, 3, 130, 141  # the last two: 128 and the number of the signal
_LONGEST_MESSAGE = 2000


class Program(click.Group):
    """A group of commands that ends with Deltaguard's exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. An error that is to be expected ends it with one line on stderr."""
        try:
            return super().invoke(ctx)
        except (SettingsError, TargetError) as error:
            _end(ctx, str(error), _USAGE)
        except CouldNotCheck as fault:
            _end(ctx, fault.detail, _NOT_CHECKED)
        except KeyboardInterrupt:
            _end(ctx, "interrupted", _INTERRUPTED)
        except BrokenPipeError:
            ctx.exit(_BROKEN_PIPE)
        except ImportError as error:
            command = self.commands.get(ctx.invoked_subcommand or "")
            if not isinstance(command, LaterCommand) or not command.lacks(error):
                raise
            _end(ctx, f"`{command.name}` needs more packages ({error}): pip install '{command.extra}'", _USAGE)


class LaterCommand(click.Command):
    """A command of another module, imported when it is run and not before.

    Args:
        name: Its name.
        target: `module:attribute` of the real command.
        short_help: Its line in the group's help.
        extra: What to install for all that its module imports, such as `deltaguard[demo]`.
    """

    def __init__(self, name: str, target: str, short_help: str, extra: str) -> None:
        super().__init__(name, short_help=short_help)
        self.extra = extra
        self._module, _, self._attribute = target.partition(":")

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the real command, which then runs in place of this one."""
        command: click.Command = getattr(import_module(self._module), self._attribute)
        return command.make_context(info_name, args, parent, **extra)

    def lacks(self, error: ImportError) -> bool:
        """Whether the import failed for a package that `extra` brings, rather than for a module of this project."""
        own = ("scanner", "shared", self._module.partition(".")[0])
        return (error.name or "").partition(".")[0] not in own


def _end(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    click.echo(f"Error: {printable(message, _LONGEST_MESSAGE)}", err=True)
    ctx.exit(exit_code)
