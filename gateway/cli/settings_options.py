"""Every setting as a flag of every command, before or after the command's name.

Not here: what a setting means (``gateway.settings``).
"""

import os
from typing import Any

import click

from gateway.settings import Loaded, describe, load

_FLAGS = "tokenfactory.settings"


class SettingOption(click.Option):
    """A flag of a setting; its text is parsed with the variables', by ``settings.load``."""


class SettingsCommand(click.Command):
    """A command with the settings as flags; its function gets ``Loaded`` as the context's object.

    ``show_settings``: list them in ``--help`` (else one line says that they are there).
    """

    def __init__(self, *args: Any, show_settings: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += setting_options(hidden=not show_settings)
        if not show_settings:
            self.epilog = "Every setting is a flag here, too: see tokenfactory config show."

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = load_settings(ctx)
        return super().invoke(ctx)


def setting_options(*, hidden: bool) -> list[click.Parameter]:
    return [
        SettingOption(
            ["setting_" + row.path.replace(".", "_"), row.flag],
            metavar=_metavar(row.expected),
            hidden=hidden,
            help=row.description + (f"  [{row.default}]" if row.default else ""),
            expose_value=False,
            callback=_keep,
        )
        for row in describe()
    ]


def load_settings(ctx: click.Context) -> Loaded:
    """Variables and flags together; raises ``SettingsError``."""
    return load(os.environ, ctx.find_root().meta.get(_FLAGS, {}))


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Groups and commands alike put what was given in one place; the later one wins."""
    if value is not None:
        flags = ctx.find_root().meta.setdefault(_FLAGS, {})
        flags[param.opts[0]] = value


def _metavar(expected: str) -> str:
    kinds = {"an integer": "INT", "a number": "NUM", "true or false": "BOOL", "text": "TEXT"}
    return next((name for start, name in kinds.items() if expected.startswith(start)), expected)
