"""The tree keeps its own promises: docstrings, mirrored tests, floors, pages that say what is."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway import __version__
from gateway.settings import describe, reference

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "routing", "quotas")
SKIPPED = frozenset({".git", ".venv", ".data", "dist", "__pycache__"})
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: Modules that touch the outside; every other one must be under the purity contract.
SHELLS = (
    "gateway.ceilings",  # asks engines
    "gateway.admission",
    "gateway.authentication",  # reads a request: sockets by type
    "gateway.balances",
    "gateway.census",
    "gateway.leases",
    "gateway.outages",  # asks the store
    "gateway.call",  # holds a reply and a relay: sockets by type
    "gateway.children",
    "gateway.claims",
    "gateway.cli",
    "gateway.control",
    "gateway.controlplane",
    "gateway.datafolder",
    "gateway.dataplane",
    "gateway.declared",
    "gateway.demo",
    "gateway.embedded",
    "gateway.explain",  # asks the store
    "gateway.engine_counts",  # asks engines
    "gateway.engines",  # reads engines' credentials
    "gateway.forward",
    "gateway.health",
    "gateway.inference",
    "gateway.intake",
    "gateway.leash",
    "gateway.link",
    "gateway.loader",
    "gateway.metering",
    "gateway.reads",
    "gateway.recount",
    "gateway.revocation",  # stops calls: sockets by type
    "gateway.routes",
    "gateway.settings",
    "gateway.snapshot_feed",
    "gateway.sockets",
    "gateway.store",
    "gateway.supervisor",
    "gateway.telemetry",
    "gateway.tokenizer",  # a thread
    "gateway.wire",
    "quotas.store",
)

#: Modules without a test file of their own name, and where they are proven instead.
PROVEN_ELSEWHERE = {
    # the data plane, whole, against real engines and clients
    "gateway.claims": "flows/test_idempotency.py",
    "gateway.dataplane": "flows/test_first_request.py flows/test_endings.py",
    "gateway.metering.lag": "gateway/metering/test_shipper.py",
    "gateway.metering.pen": "gateway/metering/test_slots.py gateway/metering/test_board.py",
    "gateway.metering.segments": "gateway/metering/test_journal.py gateway/metering/test_full_disk.py",
    "gateway.metering.desk": "flows/test_crashes.py gateway/metering/test_kill_points.py",
    "gateway.routes": "flows/test_first_request.py",
    "gateway.wire.connection": "gateway/wire/test_server.py flows/test_malformed.py",
    "gateway.wire.reply": "gateway/wire/test_server.py",
    "gateway.wire.request": "gateway/wire/test_server.py",
    # the command line, each command as it is typed
    "gateway.cli.apply": "gateway/cli/test_offline.py",
    "gateway.cli.client": "gateway/cli/test_offline.py",
    "gateway.cli.config": "gateway/cli/test_main.py",
    "gateway.cli.demo": "gateway/cli/test_up.py",
    "gateway.cli.doctor": "gateway/cli/test_offline.py",
    "gateway.cli.explain": "gateway/cli/test_offline.py flows/test_limits.py",
    "gateway.cli.keys": "gateway/cli/test_offline.py",
    "gateway.cli.limits": "gateway/cli/test_offline.py",
    "gateway.cli.models": "gateway/cli/test_offline.py",
    "gateway.cli.reconcile": "flows/test_reconcile.py",
    "gateway.cli.credits": "gateway/cli/test_money.py",
    "gateway.cli.statements": "gateway/cli/test_money.py",
    "gateway.cli.export": "gateway/cli/test_money.py",
    "gateway.cli.contracts": "gateway/cli/test_money.py",
    "gateway.cli.margin": "gateway/cli/test_money.py",
    "gateway.cli.publishers": "gateway/cli/test_money.py",
    "gateway.cli.records": "gateway/cli/test_money.py flows/test_billing.py",
    "gateway.cli.settings_options": "gateway/cli/test_main.py",
    "gateway.cli.usage": "gateway/cli/test_offline.py",
    # one test over several files that make one thing
    "gateway.control.bodies": "gateway/control/test_app.py gateway/control/test_money.py",
    "gateway.store.margins": "gateway/control/test_money.py",
    "gateway.store.exports": "gateway/control/test_exports.py",
    "gateway.control.focus": "gateway/control/test_exports.py",
    "gateway.control.core": "gateway/test_controlplane.py gateway/control/test_app.py",
    "gateway.control.sinks": "flows/test_sinks.py gateway/cli/test_sinks.py",
    "gateway.control.examination": "gateway/test_controlplane.py",
    "gateway.demo.answer": "gateway/demo/test_engine.py",
    "gateway.demo.job": "gateway/demo/test_engine.py",
    "gateway.demo.text": "gateway/demo/test_engine.py",
    "gateway.demo.works": "gateway/demo/test_engine.py",
    "gateway.link.client": "gateway/link/test_link.py",
    "gateway.link.messages": "gateway/link/test_link.py",
    "gateway.link.server": "gateway/link/test_link.py",
    "gateway.store.accounts": "gateway/declared/test_apply.py gateway/control/test_app.py",
    "gateway.declared.contracts": "gateway/declared/test_document.py gateway/store/test_books.py",
    "gateway.declared.sinks": "gateway/cli/test_sinks.py",
    "gateway.declared.prices": "gateway/declared/test_document.py gateway/store/test_books.py",
    "gateway.store.bulk": "gateway/store/test_ledger.py gateway/store/test_books.py",
    "gateway.store.contracts": "gateway/store/test_books.py",
    "gateway.store.corrections": "gateway/store/test_statements.py",
    "gateway.store.credit": "gateway/store/test_books.py gateway/store/test_statements.py",
    "gateway.store.entries": "gateway/store/test_books.py",
    "gateway.store.alerts": "gateway/control/test_alerts.py",
    "gateway.store.outbox": "gateway/control/test_deliveries.py",
    "gateway.store.sinks": "gateway/control/test_deliveries.py gateway/cli/test_sinks.py",
    "gateway.store.publishers": "gateway/store/test_books.py",
    "gateway.store.catalog": "gateway/declared/test_apply.py gateway/test_loader.py",
    "gateway.store.migrations.env": "gateway/store/test_database.py",
    "gateway.store.schema": "gateway/store/test_database.py",
    # values, proven by the rules that use them
    "quotas.errors": "quotas/store/test_store_conformance.py",
    "quotas.store.cells": "quotas/store/test_store_conformance.py",
    "quotas.store.moves": "quotas/store/test_store_conformance.py quotas/store/test_store_money.py",
    "quotas.ports": "quotas/store/test_store_conformance.py",
    "quotas.usage": "quotas/test_pricing.py quotas/test_settlement.py",
}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the three packages; migrations are data."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "versions" not in parts:
                found[".".join(parts)] = path
    return found


def files() -> list[Path]:
    """Every text file that is ours: not hidden from git, not generated."""
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file()
        and not SKIPPED & set(path.relative_to(ROOT).parts)
        and not any(part.endswith((".egg-info", "_cache")) for part in path.parts)
        and path.name != ".hypothesis"
        and ".hypothesis" not in path.parts
    ]


@pytest.mark.parametrize("name", modules())
def test_a_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(ast.parse(modules()[name].read_text())), f"{name} has no docstring"


def mirrored(name: str) -> bool:
    *above, last = name.split(".")
    return (ROOT / "tests" / Path(*above) / f"test_{last}.py").exists()


def test_a_module_has_its_test_or_says_where_it_is_proven() -> None:
    names = [name for name in modules() if not name.endswith(("__init__", "__main__"))]
    missing = [name for name in names if not mirrored(name) and name not in PROVEN_ELSEWHERE]
    assert not missing


def test_the_list_of_exceptions_is_true() -> None:
    for name, where in PROVEN_ELSEWHERE.items():
        assert name in modules(), f"{name} is gone"
        assert not mirrored(name), f"{name} has its own test now"
        for each in where.split():
            assert (ROOT / "tests" / each).exists(), f"{name}: tests/{each} is gone"


def contract(start: str) -> dict[str, list[str]]:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    return next(each for each in contracts if each["name"].startswith(start))


def is_within(name: str, packages: list[str] | tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_a_module_is_pure_unless_it_is_listed_as_a_shell() -> None:
    pure = contract("what decides is pure")["source_modules"]
    homeless = [
        name
        for name in modules()
        if not name.endswith("__init__")
        and not is_within(name, pure)
        and not is_within(name, SHELLS)
    ]
    assert not homeless


@pytest.mark.parametrize("name", [name for name in modules() if name.endswith("__init__")])
def test_a_package_imports_nothing_by_itself(name: str) -> None:
    """Importing one module of it must not bring others in behind the contracts' back."""
    tree = ast.walk(ast.parse(modules()[name].read_text()))
    assert not [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize(
    ("module", "never"),
    [
        (
            "gateway.dataplane",
            "sqlalchemy starlette uvicorn pydantic prometheus_client httpx click",
        ),
        ("gateway.supervisor", "sqlalchemy starlette uvicorn pydantic httptools uvloop redis"),
    ],
)
def test_a_process_loads_only_what_it_may(module: str, never: str) -> None:
    """The contracts read imports; this runs them."""
    code = f"import sys, {module}; print(*sorted(set({never.split()!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not done.stdout.split()


def test_shells_exist() -> None:
    known = set(modules()) | {name.removesuffix(".__init__") for name in modules()}
    assert set(SHELLS) <= known


def test_the_architecture_page_knows_every_part_of_the_gateway() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    floors = "\n".join(contract("the floors of gateway")["layers"])
    assert not [name for name in re.findall(r"\w+", floors) if not re.search(rf"\b{name}\b", page)]


def test_readme_begins_with_what_a_fresh_machine_needs() -> None:
    readme = (ROOT / "README.md").read_text()
    order = [readme.index(word) for word in ("make python3-venv git", "make up", "make test")]
    assert order == sorted(order)
    assert readme[: order[0]].count("```") == 1, "the packages come in the first block"


def test_settings_page_is_the_settings() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == reference()
    assert not [row.variable for row in describe() if f"`{row.variable}`" not in page]


def test_variables_that_pages_name_exist() -> None:
    known = {row.variable for row in describe()}
    for path in files():
        if path.suffix in (".md", ".service", ".conf") or path.name == "Dockerfile":
            named = set(re.findall(r"\bTF_[A-Z_]*[A-Z]\b", path.read_text()))
            assert named <= known, f"{path.relative_to(ROOT)}: {sorted(named - known)}"


def test_changelog_has_this_version_and_what_comes() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog
    assert f"## [{__version__}]" in changelog
    assert PYPROJECT["project"]["version"] == __version__


@pytest.mark.parametrize("page", [path for path in files() if path.suffix == ".md"], ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


#: Spelt in halves, so that this file does not name them.
NOWHERE = {
    "a package registry": ("py" + "pi.org", "python" + "hosted", "ghcr" + ".io", "docker" + ".io"),
    "one machine's folders": ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "/tmp/" + "w/"),
}


def test_no_file_names_a_registry_or_a_machine() -> None:
    for path in files():
        text = path.read_bytes().decode("utf-8", "ignore")
        for what, words in NOWHERE.items():
            found = [word for word in words if word in text]
            assert not found, f"{path.relative_to(ROOT)} names {what}: {found}"


#: Groups that are repeated possessively, and why each may be: before CPython 3.11.5 such a group loses
#: its place where its last turn fails after a repeat of its own (python/cpython#106052).
POSSESSIVE_GROUPS = {
    "contract/paths.py": "each way through it fails at its first byte, or at the end of all",
    "contract/pieces.py": "the last way through it has no repeat",
    "contract/skeleton.py": "its turn fails at its first byte, or at the end of all",
    "contract/spans.py": "each way through it fails at its first byte, or at the end of all",
    "contract/transcript.py": "its turn fails at its first byte, or at the end of all",
    "contract/usage.py": "its turn fails at its first byte, at an object too deep or at the end of all",
}


def test_no_group_is_repeated_possessively_without_a_reason() -> None:
    found = {
        path.relative_to(ROOT / "gateway").as_posix()
        for path in files()
        if path.suffix == ".py" and path.is_relative_to(ROOT / "gateway")
        and any(re.search(r"\)(?:[*+?]|\{\d*,?\d*\})\+", line)
                for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    }  # fmt: skip
    assert found == set(POSSESSIVE_GROUPS)


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
