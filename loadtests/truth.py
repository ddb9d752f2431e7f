"""Every token a real engine counted, explained: mixed requests through the official client.

Starts the gateway in a temporary folder in front of the given vLLM replicas, sends unary, streamed,
n=2 and aborted requests, and compares three accounts that must agree: the answers' own usage, the
usage records, and the engines' counters, both read while idle. vLLM counts a prompt once per
choice, and counts probes and aborted work too, so:

    engine prompt     = sum over attempts of prompt x choices        + probes
    engine generation = sum over attempts of counted completion      + probes + residue of aborts

Usage: python loadtests/truth.py http://127.0.0.1:8101 http://127.0.0.1:8102 [--requests 100]
Exits 1 when a record is missing, doubled, or differs from its answer, or a counter is unexplained.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai

TOKENFACTORY = str(Path(sys.executable).parent / "tokenfactory")
#: Tokens an engine may make between the last chunk we read and its noticing that we left.
RESIDUE_PER_ABORT = 16
CONCURRENCY = 6
IDLE_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder))
        try:
            models = httpx.get(arguments.engines[0] + "/v1/models", trust_env=False).json()
            secret = gateway.apply(arguments.engines, models["data"][0]["id"])
            return asyncio.run(prove(gateway, secret, arguments))
        finally:
            gateway.stop()


class Gateway:
    """``tokenfactory serve`` on free ports, driven through its command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environ = {key: value for key, value in os.environ.items() if key[:3] != "TF_"}
        self.environ = environ | {
            "TF_DATA_DIR": str(folder / "data"), "TF_PORT": "0", "TF_CONTROL_PORT": "0",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [TOKENFACTORY, "serve", "--json"],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("wb"),
        )
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())

    def cli(self, *words: str) -> str:
        done = subprocess.run([TOKENFACTORY, *words], env=self.environ, capture_output=True,
                              text=True, check=True)  # fmt: skip
        return done.stdout

    def apply(self, engines: list[str], upstream: str) -> str:
        path = self.folder / "models.yaml"
        path.write_text(json.dumps({
            "pools": [{"name": "real", "endpoints": [{"url": url} for url in engines]}],
            "models": [{"name": "public-name", "upstream": upstream, "pool": "real"}],
            "tenants": [{"name": "t", "projects": [{"name": "p", "keys": [{"name": "k"}]}]}],
        }))  # fmt: skip
        return json.loads(self.cli("apply", str(path), "--json"))["keys"][0]["secret"]

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.cli("usage", "--records", "--json").splitlines()]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def counters(engine: str) -> dict[str, float]:
    """An engine's own token counters, summed over its label sets."""
    text = httpx.get(engine + "/metrics", trust_env=False).text
    names = ("prompt_tokens_total", "generation_tokens_total", "num_requests_running",
             "num_requests_waiting")  # fmt: skip
    sums = dict.fromkeys(names, 0.0)
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        bare = name.partition("{")[0].removeprefix("vllm:")
        if bare in sums:
            sums[bare] += float(value)
    return sums


def idle_counters(engine: str) -> dict[str, float]:
    """The counters once nothing runs and they have stood still for a second."""
    until = time.monotonic() + IDLE_S
    before = counters(engine)
    while time.monotonic() < until:
        time.sleep(1)
        now = counters(engine)
        if now == before and not now["num_requests_running"] + now["num_requests_waiting"]:
            return now
        before = now
    raise SystemExit(f"{engine} did not become idle")


async def prove(gateway: Gateway, secret: str, arguments: argparse.Namespace) -> int:
    engines = arguments.engines
    await asyncio.sleep(5)  # the probes are over before the counters are read
    before = {engine: idle_counters(engine) for engine in engines}
    chance = random.Random(arguments.seed)
    answers: dict[str, dict] = {}
    async with openai.AsyncOpenAI(
        base_url=gateway.ready["base_url"], api_key=secret, max_retries=0, timeout=300
    ) as client:
        gate = asyncio.Semaphore(CONCURRENCY)
        kinds = ["unary", "stream", "n2", "stream-n2", "abort", "abort-n2", "text"]
        plans = [(number, kinds[number % len(kinds)]) for number in range(arguments.requests)]
        await asyncio.gather(
            *(one(client, gate, number, kind, chance.random(), answers) for number, kind in plans)
        )
    await asyncio.sleep(3)
    after = {engine: idle_counters(engine) for engine in engines}
    return judge(gateway.records(), answers, before, after, arguments.requests)


async def one(client, gate, number: int, kind: str, share: float, answers: dict) -> None:
    """One request; what its answer said of itself goes into ``answers`` by request id."""
    words = {
        "model": "public-name",
        "messages": [{"role": "user", "content": f"request {number} " * (1 + number % 9)}],
        "max_tokens": 8 + int(share * 40),
        "temperature": 1.0,
        "seed": number,
        "extra_body": {"ignore_eos": True},
    }
    if "n2" in kind:
        words["n"] = 2
    async with gate:
        if kind == "text":
            del words["messages"]
            raw = await client.completions.with_raw_response.create(
                prompt=["alpha beta", f"gamma {number}"], **words
            )
            answers[raw.headers["x-request-id"]] = told(raw.parse().usage)
        elif kind in ("unary", "n2"):
            raw = await client.chat.completions.with_raw_response.create(**words)
            answers[raw.headers["x-request-id"]] = told(raw.parse().usage)
        else:
            await streamed(client, words, kind, share, answers)


async def streamed(client, words: dict, kind: str, share: float, answers: dict) -> None:
    stream = await client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **words
    )
    request_id = stream.response.headers["x-request-id"]
    leave_after = 1 + int(share * 8)
    seen = 0
    usage = None
    async for chunk in stream:
        seen += sum(bool(choice.delta.content) for choice in chunk.choices)
        usage = chunk.usage or usage
        if kind.startswith("abort") and seen >= leave_after:
            break
    await stream.close()
    answers[request_id] = told(usage) if usage else {"at_least": seen}


def told(usage) -> dict:
    return {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}


def judge(records, answers, before, after, wanted: int) -> int:
    """Print the three accounts side by side; 0 when they agree."""
    faults = []
    by_id = {record["request_id"]: record for record in records}
    if len(records) != wanted or len(by_id) != wanted or len(answers) != wanted:
        faults.append(f"{wanted} requests, {len(answers)} answers, {len(records)} records")
    aborts = exact = 0
    for request_id, answer in answers.items():
        record = by_id.get(request_id)
        if record is None:
            faults.append(f"{request_id}: no record")
        elif "prompt" in answer:
            exact += 1
            if (record["prompt_tokens"], record["completion_tokens"]) != (
                answer["prompt"], answer["completion"]
            ):  # fmt: skip
                faults.append(f"{request_id}: answered {answer}, recorded {record}")
        else:
            aborts += 1
            # A small model may have finished before the client's close reached us.
            if record["outcome"] not in ("client_abort", "ok"):
                faults.append(f"{request_id}: outcome {record['outcome']} of an abort")
            if record["completion_tokens"] < answer["at_least"]:
                faults.append(f"{request_id}: {answer['at_least']} chunks came, {record}")
    print(f"records {len(records)}  exact {exact}  aborts {aborts}  attempts "
          f"{sum(record['attempts'] for record in records)}")  # fmt: skip
    for engine in before:
        mine = [record for record in records if record["endpoint"] == engine]
        prompts = sum(record["prompt_tokens"] * record["choices"] for record in mine)
        completion = sum(record["completion_tokens"] for record in mine)
        aborted = sum(record["outcome"] == "client_abort" for record in mine)
        grown = {name: after[engine][name] - before[engine][name] for name in before[engine]}
        residue = grown["generation_tokens_total"] - completion
        print(f"{engine}: prompt engine {grown['prompt_tokens_total']:.0f} records {prompts}; "
              f"generation engine {grown['generation_tokens_total']:.0f} records {completion} "
              f"residue {residue:.0f} of {aborted} aborts")  # fmt: skip
        if grown["prompt_tokens_total"] != prompts:
            faults.append(f"{engine}: prompt tokens differ")
        if not 0 <= residue <= aborted * RESIDUE_PER_ABORT * 2:
            faults.append(f"{engine}: generation differs by {residue:.0f}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
