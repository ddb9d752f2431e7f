"""Demo engines in a thread of their own, so that tests may use blocking clients."""

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from gateway.demo.engine import DemoEngine


class EngineThread:
    """Engines on an event loop of a thread, so that tests may use blocking clients."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._engines: list[DemoEngine] = []

    def run(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result(10)

    def start(self, **options: Any) -> DemoEngine:
        async def begin() -> DemoEngine:
            engine = DemoEngine(**options)
            await engine.start()
            return engine

        engine = self.run(begin())
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        """Whoever just connected is let go as well: a gateway that goes on may be probing."""
        for engine in self._engines:
            self.run(engine.stop())
        self.run(asyncio.sleep(0.01))
        for engine in self._engines:
            self.run(engine.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()
