"""What a slot of the dead means as values: the record it deserves and what its limits are charged.

Pure. The bill is the same table as for the living (``quotas.settlement``); limits give nothing
back that was not proven unused. Not here: which slots are looked at, and what is written where
(``recovery``).
"""

from collections.abc import Callable, Collection

import msgspec

from gateway.metering.slots import AttemptImage, SlotImage
from gateway.snapshot import Snapshot
from gateway.terms import Calendars, terms_of
from quotas.charges import Amounts, settled_as, tag_of, true_charges
from quotas.limits import Charge
from quotas.money import micro
from quotas.ports import Settlement
from quotas.pricing import METERS, Price, billed_meters, rate, total
from quotas.record import FORMAT_VERSION, AttemptEntry, UsageRecord
from quotas.settlement import Ending, Settled, settle
from quotas.usage import TokenUsage

_COUNTED = ("engine_final", "engine_partial")


class RecoveryContext(msgspec.Struct, frozen=True):
    """Names and limits for the ids in a slot, from the documents of today.

    ``charges_of(key id, model id, amounts, Unix ms, reserved)``: one a limit, as they were reserved
    then, on reserved throughput or not; () when the key is gone, and then every limit keeps what was reserved. ``endpoint_name(endpoint
    id)``: its URL, "" when it is gone. ``meters_of(model id, price id)``: the meters of that
    price-book version; ``price_of``: all of it, None when it is no longer in force.
    """

    charges_of: Callable[[int, int, Amounts, int, bool], tuple[Charge, ...]]
    endpoint_name: Callable[[int], str]
    meters_of: Callable[[int, int], Collection[str]]
    price_of: Callable[[int, int], Price | None]


def context_from(snapshot: Snapshot) -> RecoveryContext:
    """The callbacks over a snapshot, asked anew each time.

    A price version no longer in force is taken to have every meter: what was cached stays apart.
    """
    calendars = Calendars()

    def charges_of(
        key_id: int,
        model_id: int,
        amounts: Amounts,
        unix_ms: int,
        reserved: bool,  # noqa: FBT001 -- of a callback
    ) -> tuple[Charge, ...]:
        principal = snapshot.principal(key_id)
        model = snapshot.models.get(model_id)
        if principal is None or model is None:
            return ()
        terms = terms_of(principal, model, calendars, snapshot.platform)
        if reserved:
            terms = terms.on_throughput(unix_ms) or terms
        return terms.charges(amounts, unix_ms)

    def endpoint_name(endpoint_id: int) -> str:
        for pool in snapshot.pools.values():
            for endpoint in pool.endpoints:
                if endpoint.id == endpoint_id:
                    return endpoint.url
        return ""

    def price_of(model_id: int, price_id: int) -> Price | None:
        model = snapshot.models.get(model_id)
        known = [] if model is None else [model.price, *model.tiers.values()]
        for tenant in snapshot.tenants.values():
            known += [tenant.prices.get(model_id), *tenant.tiers.get(model_id, {}).values()]
        return next((each for each in known if each is not None and each.id == price_id), None)

    def meters_of(model_id: int, price_id: int) -> Collection[str]:
        price = price_of(model_id, price_id)
        if price is None:
            return METERS if price_id else ()
        return price.nano

    return RecoveryContext(charges_of, endpoint_name, meters_of, price_of)


def record_of(image: SlotImage, context: RecoveryContext) -> UsageRecord:
    """The record of a slot that was dispatched or ended."""
    settled = _settled(image)
    settlement = settlement_of(image, context)
    ended = image.ended
    delivered = image.progress is not None and image.progress.delivered
    attempts = _attempts(image, settled, context)
    last_known_ms = max((each.started_ms - image.started_ms for each in attempts), default=0)
    return UsageRecord(
        v=FORMAT_VERSION,
        request_id=image.request_id,
        tenant_id=image.tenant_id,
        project_id=image.project_id,
        key_id=image.key_id,
        model_id=image.model_id,
        price_id=image.price_id,
        operation=image.operation,
        reserved=image.reserved,
        choices=image.choices,
        prompts=image.prompts,
        prompt_estimate=image.estimate,
        cap=image.cap,
        attempts=attempts,
        usage=settled.usage.meters(),
        billed=settlement.billed,
        source=settled.source,
        outcome=settled.outcome,
        status=ended.status if ended else 200 if delivered else 0,
        started_ms=image.started_ms,
        ttft_ms=ended.ttft_ms if ended else -1,
        total_ms=ended.total_ms if ended else last_known_ms,  # nobody saw the end of a crash
        epoch=image.epoch,
        charged=settlement.charged,
    )


def settlement_of(image: SlotImage, context: RecoveryContext) -> Settlement:
    """What the slot's limits are charged and what it bills, in any state after RESERVED."""
    settled = _settled(image)
    return Settlement(
        tag_of(image.tenant_id),
        settled_as(image.request_id, image.epoch),
        image.epoch,
        _charged(image, settled, context),
        billed_meters(settled.usage, context.meters_of(image.model_id, image.price_id)),
    )


def _settled(image: SlotImage) -> Settled:
    ended, progress = image.ended, image.progress
    if ended is not None:
        usage = TokenUsage(ended.prompt, ended.cached, ended.completion, ended.reasoning)
        return Settled(usage, ended.source, ended.outcome)
    if progress is None:
        return settle(Ending(cause="gateway_crash"))
    return settle(
        Ending(
            cause="gateway_crash",
            prompt=progress.prompt,
            completion=progress.completion,
            delivered=progress.delivered,
        )
    )


def _charged(image: SlotImage, settled: Settled, context: RecoveryContext) -> tuple[Charge, ...]:
    """The engine's count where there is one, nothing where it refused, else all that was reserved.

    An end user's limits are not known from a slot: theirs are matched by dimension.
    """
    usage: TokenUsage | None = None
    if settled.source in _COUNTED:
        usage = settled.usage
    elif image.progress is not None:
        usage = TokenUsage(image.progress.prompt, 0, image.progress.completion)
    elif settled.outcome == "refused_by_engine":
        usage = TokenUsage()
    output = image.prompts * image.choices * image.cap
    amounts = (1, image.estimate, output, image.estimate + output, 1, 0)
    reserved = context.charges_of(
        image.key_id, image.model_id, amounts, image.started_ms, image.reserved
    )

    price = context.price_of(image.model_id, image.price_id)
    if price is None and image.price_id:
        # What it cost is not known any more: money keeps what was held.
        reserved = tuple(each for each in reserved if each.limit.dimension != "money")

    def cost_micro() -> int:
        if price is None:
            return 0
        lines = rate(price, settled.usage.meters(), image.operation, image.started_ms)
        return micro(total(lines))

    return true_charges(reserved, usage, cost_micro)


def _attempts(
    image: SlotImage, settled: Settled, context: RecoveryContext
) -> tuple[AttemptEntry, ...]:
    entries = [_attempt(image, each, context) for each in image.attempts]
    if not entries or image.attempts[-1].failed:
        return tuple(entries)
    usage = settled.usage
    if settled.source in _COUNTED:
        seen = (usage.prompt, usage.completion)
    elif image.progress is not None:
        seen = (image.progress.prompt, image.progress.completion)
    else:
        seen = (0, 0)
    ended = image.ended
    entries[-1] = msgspec.structs.replace(
        entries[-1],
        prompt_tokens=seen[0],
        completion_tokens=seen[1],
        status=ended.status if ended else entries[-1].status,
        ended_ms=image.started_ms + ended.total_ms if ended else entries[-1].ended_ms,
    )
    return tuple(entries)


def _attempt(image: SlotImage, each: AttemptImage, context: RecoveryContext) -> AttemptEntry:
    """An attempt whose end nobody saw ends, for the record, when it began."""
    return AttemptEntry(
        each.endpoint_id,
        context.endpoint_name(each.endpoint_id),
        image.started_ms + each.started_ms,
        image.started_ms + max(each.started_ms, each.ended_ms),
        each.status,
        each.prompt,
        each.completion,
        image.choices,
    )
