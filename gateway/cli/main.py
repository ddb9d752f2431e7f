"""``tokenfactory``: the commands by name, and the wall where every failure becomes a sentence.

Commands are imported when called, so that ``--help`` and ``version`` are quick. Exit status: 0 done,
1 failed, 2 wrong use or a confirmation that nobody gave. Not here: what any command does.
"""

import importlib
import os
import sys
from typing import Any

import click

from gateway.cli.output import EXIT_FAILED, EXIT_USAGE, CommandFailed
from gateway.cli.settings_options import setting_options
from gateway.settings import SettingsError

#: name -> (where it is, what it does)
COMMANDS = {
    "up": ("gateway.cli.up:up", "Serve with nothing configured: a demo model and a key to try."),
    "serve": ("gateway.cli.up:serve", "Serve."),
    "apply": ("gateway.cli.apply:apply", "Bring accounts, models and pools to what a file says."),
    "keys": ("gateway.cli.keys:keys", "Create, list, revoke and rotate keys."),
    "models": ("gateway.cli.models:models", "List models; add one, with what its engine can do."),
    "limits": ("gateway.cli.limits:limits", "Show and change limits."),
    "explain": (
        "gateway.cli.explain:explain",
        "What a request would get, and which limit says so.",
    ),
    "usage": ("gateway.cli.usage:usage", "Tokens and requests, or every record of them."),
    "reconcile": (
        "gateway.cli.reconcile:reconcile",
        "Compare engines' own token counters with the records.",
    ),
    "credits": ("gateway.cli.credits:credits", "Give a tenant credit, take it back, show it."),
    "contracts": ("gateway.cli.contracts:contracts", "Show what tenants agreed to."),
    "records": (
        "gateway.cli.records:records",
        "Undo what a request was charged, or charge it anew.",
    ),
    "throughput": (
        "gateway.cli.throughput:throughput",
        "Reserve tokens a minute for a tenant, see what stands idle.",
    ),
    "statements": (
        "gateway.cli.statements:statements",
        "Close months, show statements, export them signed.",
    ),
    "publishers": ("gateway.cli.publishers:publishers", "Book what publishers were paid."),
    "margin": (
        "gateway.cli.margin:margin",
        "Sales, publishers' parts and engines' costs, by model.",
    ),
    "export": (
        "gateway.cli.export:export",
        "Records, postings or FOCUS rows as CSV or JSON lines.",
    ),
    "verify": ("gateway.cli.statements:verify", "Check a signed statement, offline."),
    "sinks": ("gateway.cli.sinks:sinks", "Receivers of usage and alerts: show them, try again."),
    "config": ("gateway.cli.config:config", "Settings and where each comes from."),
    "doctor": ("gateway.cli.doctor:doctor", "Look for what will go wrong."),
    "version": ("gateway.cli.config:version", "The version of this program."),
}


class _Commands(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])


root = _Commands(
    "tokenfactory",
    params=setting_options(hidden=True),
    help="A token-metered, OpenAI-compatible front door for engines on GPUs.",
    epilog="Every setting is a variable (TF_PORT) and a flag of every command (--port).",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main(arguments: list[str] | None = None) -> None:
    """The console script's entry; it ends the process."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has enough; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; the exit status. Says on standard error what went wrong."""
    try:
        result: Any = root.main(arguments, prog_name="tokenfactory", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return _fail("stopped", EXIT_FAILED)
    except click.UsageError as error:
        hint = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        return _fail(error.format_message().rstrip(".") + hint, EXIT_USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except SettingsError as error:
        return _fail(str(error), EXIT_USAGE)
    except CommandFailed as error:
        return _fail(str(error), error.code)
    except BrokenPipeError:
        return EXIT_FAILED
    except Exception as error:
        # The last wall: a fault of ours is one sentence, too, and a traceback for who asks.
        if os.environ.get("TF_LOG_LEVEL") == "debug":
            raise
        said = (str(error).splitlines() or [""])[0][:200]
        what = f"{type(error).__name__}: {said}"
        return _fail(f"internal error ({what}); TF_LOG_LEVEL=debug shows where", EXIT_FAILED)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    click.echo(f"tokenfactory: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
