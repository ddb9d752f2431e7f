"""The admin API as the commands see it: over HTTP to a live server, else in this process.

When run.json names a live server, requests go there. Otherwise the data folder's lock is taken, what
journals still owe is shipped, and the same application answers in this process: a command works
alike with the server up, down or killed. Not here: what the answers look like to a reader.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from gateway.cli.output import CommandFailed
from gateway.datafolder import DataFolder, FolderError, RunFile
from gateway.settings import Loaded
from gateway.telemetry.access import configure_logging

TIMEOUT_S = 30.0
#: Of what reads the whole ledger.
WHOLE_LEDGER_S = 3_600.0
#: A server that was just killed lets go of the folder within a second, a draining one later.
LOCK_WAIT_S = 5.0
RECORDS_PER_PAGE = 1_000


class Admin:
    """One method a question. All raise ``CommandFailed`` with the server's own sentence."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def apply(
        self, document: Any, file: str, *, prune: bool = False, dry_run: bool = False
    ) -> Any:
        body = {"document": document, "file": file, "prune": prune, "dry_run": dry_run}
        return await self._ask("POST", "/admin/v1/apply", body)

    async def keys(self) -> Any:
        return (await self._ask("GET", "/admin/v1/keys"))["data"]

    async def create_key(self, path: str, models: list[str] | None, expires: str | None) -> Any:
        body = {"path": path, "models": models, "expires": expires}
        return await self._ask("POST", "/admin/v1/keys", body)

    async def revoke_key(self, path: str) -> Any:
        return await self._ask("POST", "/admin/v1/keys/revoke", {"path": path})

    async def rotate_key(self, path: str) -> Any:
        return await self._ask("POST", "/admin/v1/keys/rotate", {"path": path})

    async def models(self) -> Any:
        return (await self._ask("GET", "/admin/v1/models"))["data"]

    async def add_model(self, body: dict[str, Any]) -> Any:
        return await self._ask("POST", "/admin/v1/models", body)

    async def limits(self, path: str) -> Any:
        return (await self._ask("GET", "/admin/v1/limits", params={"path": path}))["data"]

    async def change_limits(self, body: dict[str, Any]) -> Any:
        return await self._ask("POST", "/admin/v1/limits", body)

    async def explain(self, key: str, model: str, sizes: dict[str, int]) -> Any:
        params = {"key": key, "model": model} | {name: str(size) for name, size in sizes.items()}
        return await self._ask("GET", "/admin/v1/explain", params=params)

    async def usage(self, params: dict[str, str]) -> list[Any]:
        """Every group that is asked for, page by page."""
        rows: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            asked = params | ({"cursor": cursor} if cursor else {})
            page = await self._ask("GET", "/admin/v1/usage", params=asked)
            rows += page["data"]
            cursor = page["next"]
        return rows

    async def records(self, since: str | None) -> AsyncIterator[Any]:
        """Every record, oldest first, page by page."""
        params: dict[str, str] = {"limit": str(RECORDS_PER_PAGE)}
        if since:
            params["since"] = since
        while True:
            page = await self._ask("GET", "/admin/v1/usage/records", params=params)
            for record in page["data"]:
                yield record
            if page["next"] is None:
                return
            params["cursor"] = str(page["next"])

    async def reconcile(self) -> Any:
        return (await self._ask("POST", "/admin/v1/reconciliations"))["data"]

    async def reconciliations(self, limit: int) -> Any:
        params = {"limit": str(limit)}
        return (await self._ask("GET", "/admin/v1/reconciliations", params=params))["data"]

    async def doctor(self) -> Any:
        return (await self._ask("GET", "/admin/v1/doctor"))["data"]

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        within_s: float = TIMEOUT_S,
    ) -> Any:
        """Any route; its answer as plain values."""
        return await self._ask(method, path, body, params, headers, within_s)

    async def raw(self, path: str, params: dict[str, str]) -> tuple[bytes, Mapping[str, str]]:
        """What is no JSON, as it came, with its headers."""
        response = await self._send("GET", path, params=params)
        if response.is_success:
            return response.content, response.headers
        try:
            answer = response.json()
        except ValueError:
            answer = None
        raise CommandFailed(_sentence(answer, response))

    async def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        within_s: float = TIMEOUT_S,
    ) -> httpx.Response:
        try:
            return await self._http.request(
                method,
                path,
                # msgspec, because YAML has dates: they travel as text.
                content=None if body is None else msgspec.json.encode(body),
                headers={"content-type": "application/json"} | (headers or {}),
                params=params,
                timeout=within_s,
            )
        except httpx.HTTPError as error:
            raise CommandFailed(
                f"the server at {self._http.base_url} does not answer ({error or type(error).__name__})"
                "; is it draining? try again, or see its log"
            ) from None

    async def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        within_s: float = TIMEOUT_S,
    ) -> Any:
        response = await self._send(method, path, body, params, headers, within_s)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and answer is not None:
            return answer
        raise CommandFailed(_sentence(answer, response))


@asynccontextmanager
async def open_admin(loaded: Loaded) -> AsyncIterator[Admin]:
    """The live server of the settings' data folder, or its database; raises ``CommandFailed``."""
    folder = DataFolder(loaded.settings.data_dir)
    try:
        live = await _live_or_locked(folder)
    except FolderError as error:
        raise CommandFailed(str(error)) from None
    if isinstance(live, RunFile):
        async with live_admin(live) as admin:
            yield admin
        return
    try:
        async with _offline_admin(loaded, folder) as admin:
            yield admin
    finally:
        os.close(live)


def ask(loaded: Loaded, question: Callable[[Admin], Awaitable[Any]]) -> Any:
    """One question, asked and answered: what most commands are. Raises ``CommandFailed``."""

    async def asked() -> Any:
        async with open_admin(loaded) as admin:
            return await question(admin)

    return asyncio.run(asked())


@asynccontextmanager
async def _offline_admin(loaded: Loaded, folder: DataFolder) -> AsyncIterator[Admin]:
    """The application in this process. The caller holds the folder's lock."""
    # Imported here: SQL and the web framework (0.5 s), for those alone without a live server.
    from gateway.control.core import ControlFailed  # noqa: PLC0415
    from gateway.controlplane import offline  # noqa: PLC0415

    configure_logging("error")
    try:
        async with (
            offline(loaded.settings, folder) as app,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://offline",
                headers={"authorization": f"Bearer {folder.operator_token()}"},
                timeout=TIMEOUT_S,
            ) as http,
        ):
            yield Admin(http)
    except (ControlFailed, FolderError) as error:
        raise CommandFailed(str(error)) from None


@asynccontextmanager
async def live_admin(run: RunFile) -> AsyncIterator[Admin]:
    async with httpx.AsyncClient(
        base_url=run.control_url,
        headers={"authorization": f"Bearer {run.operator_token}"},
        timeout=TIMEOUT_S,
        trust_env=False,  # a proxy of the environment has no business on loopback
    ) as http:
        yield Admin(http)


async def models_at(engine_url: str) -> list[str]:
    """What an engine lists at /v1/models; raises ``CommandFailed``."""
    async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
        try:
            response = await http.get(engine_url + "/v1/models")
            names = [str(model["id"]) for model in response.json()["data"]]
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise CommandFailed(f"{engine_url} does not answer ({reason})") from None
        except (ValueError, KeyError, TypeError):
            names = []
    if not names:
        raise CommandFailed(f"{engine_url} lists no models at /v1/models; is it an engine?")
    return names


async def _live_or_locked(folder: DataFolder) -> RunFile | int:
    """Who answers now, or the folder's lock; a server that starts or stops is waited for."""
    folder.make()
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        run = folder.read_run()
        if run is not None and await _answers(run):
            return run
        try:
            return folder.lock(wait_s=0)
        except FolderError:
            if time.monotonic() >= deadline_s:
                raise
        await asyncio.sleep(0.05)


async def _answers(run: RunFile) -> bool:
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        try:
            return (await http.get(run.control_url + "/healthz")).is_success
        except httpx.HTTPError:
            return False


def _sentence(answer: Any, response: httpx.Response) -> str:
    """The detail of a problem+json (RFC 9457)."""
    detail = answer.get("detail") if isinstance(answer, dict) else None
    if isinstance(detail, str) and detail:
        return detail
    return f"the server answered {response.status_code} without saying why; see its log"
