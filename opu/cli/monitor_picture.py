"""The picture that `opu monitor` draws of a server, from two looks at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opu.console import plain, table
from opu.remote.counters import CountersStatus
from opu.remote.health import find_fault

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opu.device import DeviceDescription
    from opu.remote.protocol import ServerStatus

__all__ = ["Look", "draw", "summarise"]

CLIENT_COLUMNS = ("Client", "Name", "Sessions", "Frames", "Frames/s", "In queue", "Refused")
_MOST_CLIENTS = 30
_QUANTILES = (0.5, 0.95, 0.99)
_COUNTED = {
    "frames_per_s": "frames",
    "refused_per_s": "refusals",
    "requests_per_s": "answered",
    "pattern_bytes_per_s": "pattern_bytes",
    "frame_bytes_per_s": "frame_bytes",
    "busy_fraction": "busy_s",
}


@dataclass(frozen=True)
class Look:
    """What a server was doing at a time.

    Parameters
    ----------
    seen_s : float
        When, on a clock that never goes back.
    status : ServerStatus
        What it said.
    """

    seen_s: float
    status: ServerStatus

    @property
    def counters(self) -> CountersStatus:
        """What it has counted."""
        return self.status.counters


def summarise(look: Look, earlier: Look) -> dict[str, float | None]:
    """Return what happened between two looks.

    Parameters
    ----------
    look, earlier : Look
        The later and the earlier one.

    Returns
    -------
    dict
        Rates in 1/s and quantiles in seconds; None where the server does not tell, or nothing happened.
    """
    now, then = look.counters, earlier.counters
    rates = {name: _rate(look, earlier, getattr(now, field) - getattr(then, field)) for name, field in _COUNTED.items()}
    for name in ("waited", "took"):
        recent = getattr(now, name).since(getattr(then, name))
        for q in _QUANTILES:
            rates[f"{name}_p{100 * q:.0f}_s"] = recent.quantile(q)
    return rates


def draw(uri: str, description: DeviceDescription, look: Look, earlier: Look) -> RenderableType:
    """Draw what a server is doing.

    Parameters
    ----------
    uri : str
        Its address.
    description : DeviceDescription
        What it serves.
    look, earlier : Look
        The later and the earlier one; they may be the same.
    """
    from rich.console import Group

    return Group(
        f"[bold]{plain(description.model)}[/] at {plain(uri.partition('?')[0])}",
        _facts(description, look, summarise(look, earlier)),
        _clients(look, earlier),
    )


def _rate(look: Look, earlier: Look, new: float) -> float | None:
    """Return how many a second; a server that was started again has counted less than before."""
    seconds = look.seen_s - earlier.seen_s
    return max(0.0, new) / seconds if seconds > 0 else None


def _facts(description: DeviceDescription, look: Look, rates: dict[str, float | None]) -> RenderableType:
    """Set the numbers in two columns, which fit into 80 characters."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for _ in range(2):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(min_width=22, overflow="fold")
    facts = [*_server_facts(look, rates), *_device_facts(description, look, rates)]
    half = (len(facts) + 1) // 2
    for place in range(half):
        right = facts[half + place] if half + place < len(facts) else ("", "")
        grid.add_row(*(plain(text) for text in (*facts[place], *right)))
    return grid


def _server_facts(look: Look, rates: dict[str, float | None]) -> Iterator[tuple[str, str]]:
    status, counters = look.status, look.counters
    yield "state", find_fault(status) or "well"
    yield "up", _duration(status.uptime_s)
    yield "clients", f"{len(status.clients)} now, {counters.welcomed} so far"
    yield "queue", f"{status.queued} projections"
    yield "answered", f"{_number(rates['requests_per_s'])}/s"
    yield "wait p50/95/99", _quantiles(rates, "waited")
    yield "took p50/95/99", _quantiles(rates, "took")
    yield "refused", f"{counters.refusals}, {_number(rates['refused_per_s'])}/s"
    if counters.refused:
        yield "  most by", _most(counters.refused)
    if any(counters.turned_away.values()):
        yield "not let in", _most(counters.turned_away)
    yield "gone", f"{counters.evicted} evicted, {counters.expired} silent"
    if status.lease is not None:
        yield "lease", f"{status.lease.holder}, {status.lease.expires_s:.0f} s more"
    if counters.resumed:
        yield "came back", f"{counters.resumed} times"


def _device_facts(
    description: DeviceDescription, look: Look, rates: dict[str, float | None]
) -> Iterator[tuple[str, str]]:
    counters = look.counters
    yield "frames", f"{counters.frames}, {_number(rates['frames_per_s'])}/s"
    yield "bytes in", f"{_size(rates['pattern_bytes_per_s'])}/s"
    yield "bytes out", f"{_size(rates['frame_bytes_per_s'])}/s"
    yield "device busy", _percent(rates["busy_fraction"])
    yield "calls", f"{counters.calls}, failed {counters.failed_calls}, merged {counters.merged}"
    yield "saturated", _percent(counters.saturated_fraction, digits=2)
    yield "medium", _medium(description, counters)
    yield "memory", _size(counters.resident_bytes)


def _medium(description: DeviceDescription, counters: CountersStatus) -> str:
    opened, now = description.medium.epoch, counters.medium_epoch
    if now is None or now == opened:
        return f"epoch {opened}"
    return f"epoch {now}, was {opened} when opened"


def _most(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:2]
    return ", ".join(f"{what} {count}" for what, count in most if count)


def _clients(look: Look, earlier: Look) -> RenderableType:
    """List the clients, the busiest first."""
    before = {client.client_id: client.frames for client in earlier.status.clients}
    new = {client.client_id: client.frames - before.get(client.client_id, 0) for client in look.status.clients}
    busiest = sorted(look.status.clients, key=lambda client: (-new[client.client_id], -client.frames, client.client_id))
    rows = []
    for client in busiest[:_MOST_CLIENTS]:
        frames_per_s = _number(_rate(look, earlier, new[client.client_id]))
        counts = (client.sessions, client.frames, frames_per_s, client.queued, client.refused)
        name = client.name if client.connected else f"{client.name} (away)"
        rows.append((str(client.client_id), name, *map(str, counts)))
    left_out = len(busiest) - len(rows)
    return table(f"Clients{f', {left_out} more' if left_out else ''}", CLIENT_COLUMNS, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _size(n_bytes: float | None) -> str:
    if n_bytes is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}" if n_bytes < 1000 else f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d {hour} h" if days else f"{hour} h {minute} min" if hours else f"{minute} min {second} s"


def _quantiles(rates: dict[str, float | None], name: str) -> str:
    """Write the median, the 95th and the 99th percentile in milliseconds."""
    values = [rates[f"{name}_p{100 * q:.0f}_s"] for q in _QUANTILES]
    if None in values:
        return "-"
    return " / ".join(f"{1000 * value:.3g}" for value in values if value is not None) + " ms"
