"""When a contact is made: at once, or at the end of the quiet hours that it would fall into, by the clock of where the customer lives."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from serving.policy import CHANNELS, Policy, QuietHours


def send_after(policy: Policy, channel: str, now: datetime, zone: ZoneInfo) -> datetime | None:
    """The end of the quiet hours that a contact at ``now`` (aware) would fall into, in ``zone``; None when it may go at once.

    It is the first moment after ``now`` at which the local clock stands outside them: where the clock is put back their end comes twice,
    and where it is put forward over it, they end with the leap.
    """
    quiet = policy.quiet_hours
    if quiet is None or channel not in quiet.channels or not _silent(quiet, now, zone):
        return None
    end = next(moment for moment in _ends(quiet, now, zone) if moment > now and not _silent(quiet, moment, zone))
    if end.astimezone(zone).time() != quiet.end:
        end = _leap(now, end, zone)
    return end.astimezone(zone)


def made_at(policy: Policy, now: float, zone: ZoneInfo) -> dict[str, float]:
    """By channel, when a contact decided at ``now`` (seconds since 1970) is made, of a customer in ``zone``."""
    moment = datetime.fromtimestamp(now, UTC)
    ends = {channel: send_after(policy, channel, moment, zone) for channel in CHANNELS}
    return {channel: now if end is None else end.timestamp() for channel, end in ends.items()}


def _silent(quiet: QuietHours, moment: datetime, zone: ZoneInfo) -> bool:
    clock = moment.astimezone(zone).time()
    if quiet.start > quiet.end:
        return clock >= quiet.start or clock < quiet.end
    return quiet.start <= clock < quiet.end


def _ends(quiet: QuietHours, now: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """Moments at which the local clock shows the end of the quiet hours, or has just leapt over it, in their order."""
    today = now.astimezone(zone).date()
    for days in range(3):
        shown = datetime.combine(today + timedelta(days=days), quiet.end, zone)
        yield from sorted({shown.replace(fold=fold).astimezone(UTC) for fold in (0, 1)})


def _leap(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The second at which the zone's last change between two moments happened."""
    low, high = int(before.timestamp()), int(after.timestamp())
    offset = after.astimezone(zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return datetime.fromtimestamp(high, UTC)
