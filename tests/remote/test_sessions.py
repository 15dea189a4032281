"""What a device does beside projecting, in threads of a server."""

from opu.device import SessionConfig
from opu.remote.sessions import SessionKeeper


def test_sessions_that_take_long_to_open_keep_nothing_else_waiting(toy):
    """While the settings of the device are to be changed no client projects, so that must not wait for a session."""
    keeper = SessionKeeper(toy)
    session = keeper.open(SessionConfig(n_features=4, n_outputs=3)).result(timeout=60)
    toy.open_delay_s = 2.0
    opening = [keeper.open(SessionConfig(n_features=4, n_outputs=3)) for _ in range(40)]  # some 20 s
    assert keeper.call(divmod, 7, 2).result(timeout=60) == (3, 1)
    keeper.close(session).result(timeout=60)
    assert not opening[-1].done()
    for future in opening:
        future.cancel()
    keeper.stop(60)
