"""What the tests of operation share: the status of a server that has worked."""

from opu.device import Provenance, SessionConfig
from opu.remote.counters import Counters, TurnedAway
from opu.remote.protocol import ClientStatus, ServerStatus


def provenance(started_s=0.0, finished_s=1.0, n_frames=10, saturated=0.0, epoch=0):
    return Provenance(
        device_id="toy",
        medium_id="toy",
        medium_epoch=epoch,
        session_id="toy",
        config=SessionConfig(n_features=1, n_outputs=1),
        calibration_id=None,
        first_frame_index=0,
        n_frames=n_frames,
        frame_us=100.0,
        device_start_us=0.0,
        device_us=100.0 * n_frames,
        started_unix_s=started_s,
        finished_unix_s=finished_s,
        saturated_fraction=saturated,
        skipped_frames=0,
    )


def client_status(**fields):
    known = {"client_id": 1, "name": "anna", "sessions": 2, "frames": 40, "queued": 1, "refused": 0}
    return ClientStatus(**(known | fields))


def counted():
    """Counters after three answers and as many refusals."""
    turned_away = TurnedAway()
    for _ in range(2):
        turned_away.count("key_unknown")
    counters = Counters(turned_away=turned_away)
    for _ in range(3):
        counters.accepted(n_bytes=125)
        counters.call_began()
        counters.called(provenance(saturated=0.01, epoch=3), n_requests=2)
        counters.answered(waited_s=0.004, took_s=0.2, n_frames=2, n_bytes=4000)
    for code in ("busy", "closed", "busy"):
        counters.refused(code)
    return counters


def busy_status(**fields):
    known = {
        "uptime_s": 100.5,
        "frames_per_s": 7.0,
        "queued": 1,
        "draining": False,
        "lease": None,
        "clients": (client_status(),),
        "counters": counted().snapshot(),
    }
    return ServerStatus(**(known | fields))
