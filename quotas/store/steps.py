"""The steps taken in Redis and Valkey: Lua, loaded as a library of functions or as scripts.

A library (Valkey, Redis 7) keeps its functions made and what it has read; a server without them, or
one that forbids them, is given each step as a script of its own, which costs it twice the time. Names
carry a digest of the source, so that processes of two versions share a server. Not here: what the
steps do (``lua/``), connections (``quotas.store.pipeline``).
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import hiredis

from quotas.errors import StoreUnavailable
from quotas.store.pipeline import Argument, Command, first_word

_LUA = Path(__file__).with_name("lua")
#: Says a command on a connection that is being made; raises its ``hiredis.ReplyError``.
Ask = Callable[[Command], Awaitable[object]]


class Step:
    """One step: its file, led by the parts that it shares with others."""

    __slots__ = ("function", "name", "parts", "sha", "source")

    def __init__(self, name: str, *shared: str) -> None:
        self.name = name
        self.parts = (*shared, name)
        self.function = self.sha = ""
        self.source = b""

    def command(
        self, keys: Sequence[str], arguments: Sequence[Argument], *, scripted: bool
    ) -> Command:
        how = ("EVALSHA", self.sha) if scripted else ("FCALL", self.function)
        return (*how, len(keys), *keys, *arguments)


RESERVE = Step("reserve", "levels", "scopes", "judge")
INSPECT = Step("inspect", "levels", "scopes", "judge")
REHOLD = Step("rehold", "levels", "scopes", "judge")
SETTLE = Step("settle", "levels", "scopes", "moves")
RELEASE = Step("release", "levels", "scopes", "moves")
EXPIRE = Step("expire", "levels", "scopes", "moves")
SEED = Step("seed", "levels", "scopes", "moves")
ADJUST = Step("adjust", "levels", "scopes")
EPOCH = Step("epoch", "levels")
RENEW = Step("renew", "levels")
CLAIM = Step("claim", "levels")
UNCLAIM = Step("unclaim", "levels")


class Library:
    """All steps, as they are loaded. ``read``: a part's source by its name."""

    def __init__(self, steps: Sequence[Step], read: Callable[[str], bytes]) -> None:
        self.steps = tuple(steps)
        self.load(read)

    def load(self, read: Callable[[str], bytes]) -> None:
        parts = {part: read(part) for part in dict.fromkeys(p for s in self.steps for p in s.parts)}
        digest = hashlib.sha1(b"".join(parts.values()), usedforsecurity=False).hexdigest()[:12]
        registered = []
        for step in self.steps:
            step.function = f"tf_{step.name}_{digest}"
            registered.append(f"redis.register_function('{step.function}', {step.name})".encode())
            step.source = b"\n".join(
                [*(parts[part] for part in step.parts), f"return {step.name}(KEYS, ARGV)".encode()]
            )
            step.sha = hashlib.sha1(step.source, usedforsecurity=False).hexdigest()
        head = f"#!lua name=tf_{digest}".encode()
        self.source = b"\n".join([head, *parts.values(), *registered])

    def commands(self, *, scripted: bool) -> list[Command]:
        """What loads it."""
        if scripted:
            return [("SCRIPT", "LOAD", step.source) for step in self.steps]
        return [("FUNCTION", "LOAD", self.source)]

    async def greet(self, ask: Ask) -> bool:
        """Load it on a new connection; whether as scripts. Raises ``StoreUnavailable``."""
        try:
            await ask(("FUNCTION", "LOAD", self.source))
        except hiredis.ReplyError as error:
            if "already exists" in str(error):
                return False
            if not _has_no_functions(error):
                raise StoreUnavailable(f"the store refused: {first_word(error)}") from None
        else:
            return False
        try:
            for command in self.commands(scripted=True):
                await ask(command)
        except hiredis.ReplyError as error:
            raise StoreUnavailable(f"the store refused: {first_word(error)}") from None
        return True


def read_part(name: str) -> bytes:
    return _LUA.joinpath(f"{name}.lua").read_bytes()


def is_forgotten(error: Exception) -> bool:
    """Whether a reply says that the server does not have the step (any more)."""
    return first_word(error) == "NOSCRIPT" or "Function not found" in str(error)


def _has_no_functions(error: Exception) -> bool:
    return first_word(error) == "NOPERM" or "unknown command" in str(error)


LIBRARY = Library(
    (
        *(RESERVE, SETTLE, RELEASE, EXPIRE, RENEW, INSPECT, EPOCH, SEED, ADJUST, REHOLD),
        *(CLAIM, UNCLAIM),
    ),
    read_part,
)
