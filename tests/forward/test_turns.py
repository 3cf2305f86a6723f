"""Threads get the model in the order in which they asked."""

import threading
import time

import pytest

from patchclamp.forward.turns import Turns


def test_one_who_asks_once_is_not_passed_by_one_who_asks_again_and_again():
    turns, order, stop = Turns(), [], threading.Event()

    def loop():
        while not stop.is_set():
            with turns:
                order.append("loop")
                time.sleep(0.001)

    def once():
        with turns:
            order.append("once")
        stop.set()

    threads = [threading.Thread(target=loop), threading.Thread(target=once)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    asked_at = len(order)
    for thread in threads:
        thread.join(10)
    assert "once" in order and order.index("once") <= asked_at + 1


def test_nobody_else_is_inside_and_the_owner_may_go_deeper():
    turns, inside, worst = Turns(), [], []

    def work():
        for _ in range(50):
            with turns, turns:
                inside.append(1)
                worst.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert max(worst) == 1 and len(worst) == 300


def test_an_error_inside_lets_the_next_one_in():
    turns = Turns()
    with pytest.raises(ValueError, match="inside"), turns:
        raise ValueError("inside")
    entered = threading.Event()

    def enter():
        with turns:
            entered.set()

    threading.Thread(target=enter).start()
    assert entered.wait(5)
