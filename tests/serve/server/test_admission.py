import concurrent.futures
import threading
import time

import grpc
import pytest

from tfrec_attn.serve.server.admission import Admission
from tfrec_attn.serve.server.incoming import Call
from tfrec_attn.serve.server.servable import ServingError


class Room:
    """Calls that stay until they are let go, and how many of them were inside at once."""

    def __init__(self, running, waiting):
        self.admission = Admission(running, waiting)
        self.inside, self.leave = threading.Semaphore(0), threading.Event()
        self.pool = concurrent.futures.ThreadPoolExecutor()

    def come(self, call):
        with self.admission.admit(call):
            self.inside.release()
            assert self.leave.wait(10)

    def send(self, call=None):
        return self.pool.submit(self.come, call or Call())


def test_a_call_too_many_is_refused_and_the_others_run():
    room = Room(running=2, waiting=1)
    jobs = [room.send() for _ in range(4)]
    done, _ = concurrent.futures.wait(
        jobs, 10, return_when=concurrent.futures.FIRST_COMPLETED
    )
    (refused,) = done
    assert refused.exception().code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert room.inside.acquire(timeout=10)
    assert room.inside.acquire(timeout=10)
    assert not room.inside.acquire(blocking=False)
    assert not room.admission.wait_until_idle(0)
    room.leave.set()
    assert sum(job.exception(10) is None for job in jobs) == 3
    assert room.admission.wait_until_idle(10)


@pytest.mark.parametrize("seconds", [-1.0, 0.05])
def test_a_call_whose_deadline_passes_while_it_waits_never_runs(seconds):
    room = Room(running=1, waiting=5)
    first = room.send()
    assert room.inside.acquire(timeout=10)
    late = room.send(Call(deadline=time.monotonic() + seconds))
    error = late.exception(10)
    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not room.inside.acquire(blocking=False)
    after = room.send()
    room.leave.set()
    assert first.exception(10) is None
    assert after.exception(10) is None


def test_a_deadline_that_has_passed_is_late_in_an_empty_room_too():
    with (
        pytest.raises(ServingError),
        Admission(1, 0).admit(Call(deadline=time.monotonic())),
    ):
        pytest.fail("it ran")
