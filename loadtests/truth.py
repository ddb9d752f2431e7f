"""Every token a real engine counted, explained: mixed requests through the official client.

Starts the gateway in a temporary folder in front of the given vLLM replicas, sends unary and streamed
requests, several choices, lists of prompts and clients that leave, and compares three accounts that
must agree: the answers' own usage, the usage records, and the engines' counters. The last comparison is
``tokenfactory reconcile``'s (docs/reconciliation.md); the counters are read here as well, so that its
reading of them is not taken on trust.

Usage: python loadtests/truth.py http://127.0.0.1:8101 [http://127.0.0.1:8102] [--requests 500]
Exits 1 when a record is missing, doubled, or differs from its answer, or a token is unexplained.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import openai

TOKENFACTORY = str(Path(sys.executable).parent / "tokenfactory")
CONCURRENCY = 6
IDLE_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--whole", action="store_true", help="nobody leaves: no range has room")
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
                              text=True, check=words[0] != "reconcile")  # fmt: skip
        return done.stdout

    def reconcile(self) -> list[dict]:
        return json.loads(self.cli("reconcile", "--json"))

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
    for engine in engines:
        idle_counters(engine)
    gateway.reconcile()  # the stretch before the requests ends here
    before = {engine: idle_counters(engine) for engine in engines}
    chance = random.Random(arguments.seed)
    answers: dict[str, dict] = {}
    async with openai.AsyncOpenAI(
        base_url=gateway.ready["base_url"], api_key=secret, max_retries=0, timeout=300
    ) as client:
        gate = asyncio.Semaphore(CONCURRENCY)
        kinds = ["unary", "stream", "n2", "stream-n2", "abort", "abort-n2", "text", "text-stream",
                 "text-abort", "unary-abort"]  # fmt: skip
        if arguments.whole:
            kinds = [kind for kind in kinds if "abort" not in kind]
        plans = [(number, kinds[number % len(kinds)]) for number in range(arguments.requests)]
        await asyncio.gather(
            *(one(client, gate, number, kind, chance.random(), answers) for number, kind in plans)
        )
    await asyncio.sleep(3)
    after = {engine: idle_counters(engine) for engine in engines}
    records = gateway.records()
    faults = judge_answers(records, answers, arguments.requests)
    faults += judge_engines(gateway.reconcile(), before, after)
    faults += await asyncio.to_thread(find_stranger, gateway, engines[0])
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


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
        if kind.startswith("text"):
            del words["messages"]
            words["prompt"] = ["alpha beta", f"gamma {number}"]
        api = client.completions if kind.startswith("text") else client.chat.completions
        if kind == "unary-abort":
            # Who leaves before the head learns no id: the record is found by what is left over.
            with contextlib.suppress(openai.APITimeoutError):
                raw = await api.with_raw_response.create(**words, timeout=0.05 + share * 0.3)
                answers[raw.headers["x-request-id"]] = told(raw.parse().usage)
                return
            answers[f"unknown {number}"] = {"at_least": 0}
        elif kind in ("unary", "n2", "text"):
            raw = await api.with_raw_response.create(**words)
            answers[raw.headers["x-request-id"]] = told(raw.parse().usage)
        else:
            await streamed(api, words, share, answers, leaves="abort" in kind)


async def streamed(api, words: dict, share: float, answers: dict, *, leaves: bool) -> None:
    stream = await api.create(stream=True, stream_options={"include_usage": True}, **words)
    request_id = stream.response.headers["x-request-id"]
    leave_after = 1 + int(share * 8)
    seen = 0
    usage = None
    async for chunk in stream:
        for choice in chunk.choices:
            seen += bool(choice.text if hasattr(choice, "text") else choice.delta.content)
        usage = chunk.usage or usage
        if leaves and seen >= leave_after:
            break
    await stream.close()
    answers[request_id] = told(usage) if usage and not leaves else {"at_least": seen}


def told(usage) -> dict:
    return {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}


def judge_answers(records, answers, wanted: int) -> list[str]:
    """Each answer against its record."""
    faults = []
    by_id = {record["request_id"]: record for record in records}
    # Who left at once may have left before an engine was asked: then there is nothing to record.
    unknown = sum(request_id.startswith("unknown ") for request_id in answers)
    if not wanted - unknown <= len(records) == len(by_id) <= wanted or len(answers) != wanted:
        faults.append(f"{wanted} requests, {len(answers)} answers, {len(records)} records")
    aborts = exact = 0
    for request_id, answer in answers.items():
        record = by_id.get(request_id)
        if request_id.startswith("unknown "):
            aborts += 1
        elif record is None:
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
    outcomes = Counter(record["outcome"] for record in records)
    print(f"records {len(records)} {dict(outcomes)}; answers exact {exact}, cut short {aborts}; "
          f"attempts {sum(record['attempts'] for record in records)}")  # fmt: skip
    return faults


def judge_engines(reports, before, after) -> list[str]:
    """What reconcile found, and whether it read the counters as we do."""
    faults = []
    for engine in before:
        mine = [report for report in reports if report["endpoint"] == engine]
        for report in mine:
            reasons = Counter(each["reason"] for each in report["explained_by"])
            print(f"{engine}: exact {report['exact']}, attempts {report['attempts']}, probes "
                  f"{report['probes']}, with room {report['with_room']} {dict(reasons)}")  # fmt: skip
            for kind in ("prompt", "generation"):
                print(f"  {kind}: engine {report['engine_' + kind]}, records "
                      f"{report[kind]['low']} to {report[kind]['high']}, unexplained "
                      f"{report['difference_' + kind]}")  # fmt: skip
                if report[f"difference_{kind}"]:
                    faults.append(f"{engine}: {kind} differs")
        for kind in ("prompt", "generation"):
            name = f"{kind}_tokens_total"
            grown = after[engine][name] - before[engine][name]
            seen = sum(report[f"engine_{kind}"] for report in mine)
            if seen != grown:
                faults.append(f"{engine}: {kind} grew by {grown:.0f}, reconcile read {seen}")
    return faults


def find_stranger(gateway: Gateway, engine: str) -> list[str]:
    """One request past the gateway: reconcile must find just its tokens."""
    model = httpx.get(engine + "/v1/models", trust_env=False).json()["data"][0]["id"]
    body = {"model": model, "prompt": "who goes there", "max_tokens": 7, "ignore_eos": True}
    answer = httpx.post(engine + "/v1/completions", json=body, timeout=60, trust_env=False)
    usage = answer.json()["usage"]
    sent = (usage["prompt_tokens"], usage["completion_tokens"])
    idle_counters(engine)
    [report] = [each for each in gateway.reconcile() if each["endpoint"] == engine]
    found = (report["difference_prompt"], report["difference_generation"])
    print(f"a stranger's request of {sent} tokens: unexplained {found}")
    return [] if found == sent else [f"a stranger's {sent} tokens were found as {found}"]


if __name__ == "__main__":
    sys.exit(main())
