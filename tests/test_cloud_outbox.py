"""The outbox: what the socket refuses waits in order, within its budget, and is offered again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from splitedge.cloud.outbox import Outbox


class Socket:
    """Takes as many messages of each edge as it is told; some edges are gone."""

    def __init__(self):
        self.room, self.taken, self.gone, self.lost = {}, [], set(), 0

    def offer(self, peer, frames):
        if peer in self.gone:
            raise ConnectionError("no such edge")
        if not self.room.get(peer, 0):
            return False
        self.room[peer] -= 1
        self.taken.append((peer, frames[0]))
        return True

    def lose(self, messages):
        self.lost += messages


def boxed(peer_bytes=100, total_bytes=150):
    socket = Socket()
    return socket, Outbox(socket.offer, peer_bytes, total_bytes, socket.lose)


def test_what_there_is_room_for_leaves_at_once_and_the_rest_in_order():
    socket, box = boxed()
    socket.room[b"p"] = 1
    for word in (b"one", b"two", b"three"):
        box.send(b"p", [word])
    assert socket.taken == [(b"p", b"one")] and box and box.nbytes == 8
    socket.room[b"p"] = 9
    box.send(b"p", [b"four"])
    assert len(socket.taken) == 1, "nothing overtakes what waits"
    box.flush()
    assert [word for _, word in socket.taken] == [b"one", b"two", b"three", b"four"]
    assert not box and box.nbytes == 0 and socket.lost == 0


def test_an_edge_that_does_not_read_does_not_hold_up_another():
    socket, box = boxed()
    socket.room[b"q"] = 5
    box.send(b"p", [b"x"])
    box.send(b"q", [b"y"])
    assert socket.taken == [(b"q", b"y")]


def test_over_the_budget_messages_are_lost_and_counted():
    socket, box = boxed()
    for _ in range(3):
        box.send(b"p", [bytes(40)])
    assert box.nbytes == 80 and socket.lost == 1
    box.send(b"q", [bytes(70)])
    box.send(b"q", [bytes(71)])
    assert box.nbytes == 150 and socket.lost == 2


def test_what_waits_for_an_edge_that_is_gone_is_dropped():
    socket, box = boxed()
    for _ in range(2):
        box.send(b"p", [bytes(10)])
    socket.gone.add(b"p")
    box.flush()
    assert not box and box.nbytes == 0 and socket.lost == 2
    box.send(b"p", [b"x"])
    assert not box and socket.lost == 3


@hypothesis_settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"p", b"q"]), st.integers(0, 60), st.integers(0, 3)), max_size=40))
def test_nothing_is_lost_silently_doubled_or_reordered(steps):
    socket, box = boxed()
    sent = []
    for number, (peer, size, room) in enumerate(steps):
        message = number.to_bytes(2, "big") + bytes(size)
        sent.append((peer, message))
        socket.room[peer] = room
        box.send(peer, [message])
        box.flush()
        assert box.nbytes <= 150
    socket.room = {b"p": 99, b"q": 99}
    box.flush()
    assert not box and box.nbytes == 0
    assert len(socket.taken) + socket.lost == len(sent)
    for peer in (b"p", b"q"):
        got = [m for p, m in socket.taken if p == peer]
        assert got == sorted(got) and set(got) <= {m for p, m in sent if p == peer}
