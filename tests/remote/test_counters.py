"""What the server counts, and whether it is well."""

import threading

import msgspec
import pytest
from operation_helpers import busy_status, provenance

from opu.remote.counters import BOUNDS_S, Counters, CountersStatus, Histogram
from opu.remote.health import HealthLimits, find_fault


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def call(counters, provenance, n_requests=1):
    counters.call_began()
    counters.called(provenance, n_requests)


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ("malformed", "malformed"),
        ("repeated", "repeated"),
        ("cancelled", "cancelled"),
        ("late", "late"),
        ("welcomed", "welcomed"),
        ("resumed", "resumed"),
        ("evicted", "evicted"),
        ("expired", "expired"),
        ("cut_off", "cut_off"),
    ],
)
def test_an_event_counts_in_its_own_field_alone(event, field):
    counters = Counters(Clock())
    before = msgspec.structs.asdict(counters.snapshot())
    getattr(counters, event)()
    getattr(counters, event)()
    after = msgspec.structs.asdict(counters.snapshot())
    changed = {name: value for name, value in after.items() if value != before[name] and name != "resident_bytes"}
    assert changed == {field: 2}


def test_requests_frames_and_bytes_add_up():
    counters = Counters()
    for _ in range(3):
        counters.accepted(n_bytes=125)
        counters.answered(waited_s=0.004, took_s=0.02, n_frames=2, n_bytes=4000)
    for code in ("busy", "closed", "busy"):
        counters.refused(code)
    status = counters.snapshot()
    assert (status.accepted, status.answered, status.pattern_bytes) == (3, 3, 375)
    assert (status.frames, status.frame_bytes) == (6, 12000)
    assert (status.refused, status.refusals) == ({"busy": 2, "closed": 1}, 3)
    assert status.waited.sum_s == pytest.approx(0.012)
    assert status.took.total == 3


def test_a_snapshot_stays_as_it_is():
    counters = Counters()
    counters.refused("busy")
    status = counters.snapshot()
    counters.refused("busy")
    counters.answered(waited_s=0, took_s=0, n_frames=1, n_bytes=1)
    assert status.refused == {"busy": 1}
    assert status.took.total == 0


def test_buckets_are_cumulative_and_a_bound_belongs_to_its_own():
    counters = Counters()
    for took_s in (-1.0, 0.001, 0.0011, 59.0, 1e9):
        counters.answered(waited_s=0.0, took_s=took_s, n_frames=1, n_bytes=1)
    took = counters.snapshot().took
    at = dict(zip((*BOUNDS_S, "all"), took.counts, strict=True))
    assert (at[0.0005], at[0.001], at[0.002], at[30.0], at[60.0], at["all"]) == (1, 2, 3, 3, 4, 5)


def test_quantiles_lie_within_their_buckets():
    histogram = Histogram(bounds_s=(1.0, 2.0, 4.0), counts=(0, 50, 100, 110), sum_s=300.0)
    assert histogram.quantile(0.0) == 1.0
    assert histogram.quantile(55 / 110 / 2) == pytest.approx(1.55)
    assert histogram.quantile(75 / 110) == pytest.approx(3.0)
    assert histogram.quantile(1.0) == 4.0  # beyond the last bound nothing more is known
    assert Histogram(bounds_s=(1.0,), counts=(0, 0), sum_s=0.0).quantile(0.5) is None


def test_what_came_since_an_earlier_look():
    counters = Counters()
    counters.answered(waited_s=10.0, took_s=10.0, n_frames=1, n_bytes=1)
    earlier = counters.snapshot().took
    counters.answered(waited_s=0.0, took_s=0.003, n_frames=1, n_bytes=1)
    later = counters.snapshot().took
    assert later.since(earlier).total == 1
    assert later.since(earlier).quantile(0.99) < 0.005
    assert earlier.since(later) == earlier  # the server was restarted in between


@pytest.mark.parametrize(
    "fields",
    [
        {"bounds_s": [1.0], "counts": [1], "sum_s": 0.0},
        {"bounds_s": [2.0, 1.0], "counts": [0, 0, 0], "sum_s": 0.0},
        {"bounds_s": [1.0], "counts": [2, 1], "sum_s": 0.0},
        {"bounds_s": [], "counts": [0], "sum_s": 0.0},
        {"bounds_s": [1.0], "counts": [-1, 1], "sum_s": 0.0},
        {"bounds_s": [float(i) for i in range(65)], "counts": [0] * 66, "sum_s": 0.0},
    ],
)
def test_a_histogram_that_cannot_be_is_not_decoded(fields):
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Histogram)


def test_the_status_crosses_the_network():
    counters = Counters()
    counters.refused("busy")
    call(counters, provenance(saturated=0.25, epoch=3))
    status = counters.snapshot()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(status), type=CountersStatus) == status
    assert msgspec.json.decode(msgspec.json.encode(status), type=CountersStatus) == status


def test_calls_that_overlap_do_not_make_the_device_more_than_busy():
    counters = Counters()
    for started_s, finished_s in ((10.0, 11.0), (10.5, 12.0), (10.6, 11.5), (20.0, 21.0), (30.0, float("nan"))):
        call(counters, provenance(started_s, finished_s), n_requests=3)
    status = counters.snapshot()
    assert status.busy_s == pytest.approx(3.0)
    assert (status.calls, status.merged) == (5, 10)


def test_saturation_does_not_depend_on_how_frames_are_cut():
    whole, cut = Counters(), Counters()
    for counters, n_calls, n_frames in ((whole, 1, 500), (cut, 50, 10)):
        call(counters, provenance(n_frames=1, saturated=0.0))
        for _ in range(n_calls):
            call(counters, provenance(n_frames=n_frames, saturated=0.5))
    assert whole.snapshot().saturated_fraction == pytest.approx(cut.snapshot().saturated_fraction)
    assert 0.15 < whole.snapshot().saturated_fraction < 0.25


@pytest.mark.parametrize("nonsense", [float("nan"), -1.0, 2.0])
def test_a_saturation_that_cannot_be_is_left_out(nonsense):
    counters = Counters()
    assert counters.snapshot().saturated_fraction is None
    call(counters, provenance(saturated=0.1, epoch=7))
    call(counters, provenance(saturated=nonsense, epoch=8))
    assert counters.snapshot().saturated_fraction == 0.1
    assert counters.snapshot().medium_epoch == 8


def test_it_is_known_how_long_the_device_gives_no_answer():
    clock = Clock()
    counters = Counters(clock)
    assert counters.snapshot().vitals.device_s is None
    counters.call_began()
    clock.now_s += 3
    counters.call_began()
    assert counters.snapshot().vitals.device_s == 3
    counters.called(provenance())
    assert counters.snapshot().vitals.device_s == 0
    clock.now_s += 2
    assert counters.snapshot().vitals.device_s == 2
    counters.call_failed()
    assert counters.snapshot().vitals.device_s is None
    assert counters.snapshot().failed_calls == 1


def test_faults_are_told():
    clock = Clock()
    counters = Counters(clock)

    def fault(**fields):
        return find_fault(busy_status(counters=counters.snapshot(), **fields), HealthLimits(beat_s=5, device_s=20))

    assert fault() is None
    counters.call_began()
    clock.now_s += 6
    assert fault() == "the loop of the server has not gone round for 6 s"
    counters.beat()
    assert fault() is None
    clock.now_s += 15
    counters.beat()
    assert fault() == "the device has not answered for 21 s"
    counters.called(provenance())
    assert fault() is None
    assert fault(draining=True) == "the server is being stopped"


def test_it_may_be_read_while_it_counts():
    counters = Counters()
    done = threading.Event()
    faults = []

    def read():
        try:
            while not done.is_set():
                msgspec.msgpack.encode(counters.snapshot())
        except Exception as error:  # noqa: BLE001 - the test shall show it
            faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(5000):
        counters.refused(f"code {number % 300}")
        counters.answered(waited_s=0.0, took_s=number / 1000, n_frames=1, n_bytes=1)
    done.set()
    for reader in readers:
        reader.join(60)
    assert faults == []
    assert counters.snapshot().took.total == 5000
