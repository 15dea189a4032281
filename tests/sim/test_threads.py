"""Kernels take turns, and small ones have one thread."""

import numba
import pytest

from opu.sim.threads import KernelTurn, numba_lock

N_THREADS = numba.config.NUMBA_NUM_THREADS


@pytest.mark.parametrize(("work_ns", "n_threads"), [(0, 1), (1e4, 1), (1e7, N_THREADS)])
def test_small_work_has_one_thread(work_ns, n_threads):
    with KernelTurn(work_ns):
        assert numba.get_num_threads() == n_threads
        assert numba_lock.locked()
    assert numba.get_num_threads() == N_THREADS
    assert not numba_lock.locked()


def test_a_turn_that_fails_ends():
    with pytest.raises(ZeroDivisionError), KernelTurn(0):
        1 / 0  # noqa: B018 - the kernel
    assert numba.get_num_threads() == N_THREADS
    assert not numba_lock.locked()


def test_a_limit_set_elsewhere_stays():
    numba.set_num_threads(1)
    try:
        with KernelTurn(1e7):
            assert numba.get_num_threads() == 1
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(N_THREADS)
