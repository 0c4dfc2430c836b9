"""
Replies that are lost after the server did the work: nothing is doubled, nothing is lost.

Whatever breaks, a task is in its queue once if its submission was acknowledged, once or not at
all if its fate is unknown, and not at all if it was told to be unsent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from attrs import define, field

from fault_rig import Rig, in_time
from light_operator import LightOperator
from sandai.op.models import ClientPoolTimeoutError, OperatorConnectionError
from scenarios import ClientView, Submission, Task, at_once
from tcp_proxy import Cut, Way
from watching import eventually


@define
class Account:
    """What callers were told of their tasks."""

    acknowledged: set[str] = field(factory=set)
    doubted: set[str] = field(factory=set)
    unsent: int = 0

    def failed(self, error: BaseException | None) -> None:
        """Enter what an exception says."""
        assert isinstance(error, OperatorConnectionError | ClientPoolTimeoutError), error
        task_id = getattr(error, "task_id", None)
        if task_id is None:
            self.unsent += 1
        else:
            self.doubted.add(task_id)

    def submitted(self, submissions: Sequence[Submission]) -> None:
        """Enter what a batch says."""
        for submission in submissions:
            if submission.submitted:
                assert submission.task_id is not None
                self.acknowledged.add(submission.task_id)
            else:
                assert getattr(submission.error, "task_id", None) == submission.task_id
                self.failed(submission.error)


def one_call(client: ClientView) -> Account:
    """Submit a task."""
    account = Account()
    with pytest.raises(OperatorConnectionError) as caught:
        client.async_call([], {"n": 0})
    account.failed(caught.value)
    assert caught.value.task_id is not None
    assert caught.value.task_id in str(caught.value)
    return account


def one_batch(client: ClientView) -> Account:
    """Submit a batch of two writes."""
    account = Account()
    account.submitted(client.batch_submit([([], {"n": n}) for n in range(700)]))
    return account


def many_calls(client: ClientView) -> Account:
    """Submit from sixty-four callers at once, whose tasks share writes."""
    account = Account()
    with at_once(64, lambda n: client.async_call([], {"n": n})) as calls:
        for call in calls:
            if call.exception() is None:
                account.acknowledged.add(call.result().task_id)
            else:
                account.failed(call.exception())
    return account


def many_batches(client: ClientView) -> Account:
    """Submit sixteen batches at once, to two queues."""

    def submit(number: int) -> list[Submission]:
        tasks: list[Task] = [([], {"n": n}) for n in range(30)]
        return client.batch_submit(tasks, priority=("high", "low")[number % 2])

    account = Account()
    with at_once(16, submit) as calls:
        for call in calls:
            account.submitted(call.result())
    return account


HOW_MANY: dict[Callable[[ClientView], Account], int] = {
    one_call: 1,
    one_batch: 700,
    many_calls: 64,
    many_batches: 480,
}


@pytest.mark.parametrize("how", Cut)
@pytest.mark.parametrize("submit", HOW_MANY)
def test_dropped_replies(rig: Rig, submit: Callable[[ClientView], Account], how: Cut) -> None:
    """What was pushed and not acknowledged is told to be in doubt, is there once, and is done."""
    client = rig.client()
    assert client.ping()
    rig.broker.drop_replies = how
    with in_time():
        account = submit(client)
    rig.broker.heal()
    assert account.acknowledged == set()
    assert account.doubted
    assert len(account.doubted) + account.unsent == HOW_MANY[submit]
    queued = rig.queued()
    assert set(queued.values()) == {1}
    if how is Cut.SILENCE or submit is one_call:
        assert set(queued) == account.doubted
    else:
        # The first reply ends the connection, perhaps before the end of a long request.
        assert set(queued) <= account.doubted
    with LightOperator(rig.server.url):
        ids = sorted(queued)
        replies = client.get_all(ids, timeout=10)
        assert len(replies) == len(ids)
        assert all(reply["status"] == "success" for reply in replies)
        assert client.sync([], {"n": 1}) == ([], {"n": 1})


@pytest.mark.parametrize("way", [Way.REQUESTS, Way.REPLIES])
@pytest.mark.parametrize("submit", [one_batch, many_calls, many_batches])
def test_cut_in_the_middle(rig: Rig, submit: Callable[[ClientView], Account], way: Way) -> None:
    """Cut after any number of bytes, what is acknowledged is there, and what is unsent is not."""
    client = rig.client()
    assert client.ping()
    expected: set[str] = set()
    for step in range(12):
        # A message is some hundred bytes, the reply to a command is four.
        count = step * (3001 if way is Way.REQUESTS else 1)
        rig.broker.cut_after(count, way)
        account = submit(client)
        rig.broker.heal()
        assert (
            len(account.acknowledged) + len(account.doubted) + account.unsent == (HOW_MANY[submit])
        )
        queued = rig.queued()
        assert set(queued.values()) <= {1}
        added = set(queued) - expected
        assert account.acknowledged <= added <= account.acknowledged | account.doubted
        expected |= added


def test_a_call_in_doubt_is_not_waited_for(rig: Rig) -> None:
    """sync() whose push has no reply says so at once, and ends the wait that had begun."""
    client = rig.client()
    assert client.ping()
    rig.broker.drop_replies = Cut.RESET
    with in_time(0), pytest.raises(OperatorConnectionError) as caught:
        client.sync([], {"n": 1})
    rig.broker.heal()
    task_id = caught.value.task_id
    assert rig.queued() == {task_id: 1}
    eventually(lambda: rig.channels() == 0, within=2)
    with LightOperator(rig.server.url):
        assert client.attach(str(task_id)).get(timeout=10)["results"] == {"n": 1}


def test_a_batch_in_doubt_is_not_waited_for(rig: Rig) -> None:
    """batch_sync_detailed() says of each task which it is, and waits for no other than those."""
    client = rig.client()
    assert client.ping()
    rig.broker.drop_replies = Cut.FIN
    with in_time(0):
        results = client.batch_sync_detailed([([], {"n": n}) for n in range(20)])
    rig.broker.heal()
    assert not any(result.submitted for result in results)
    assert all(isinstance(result.error, OperatorConnectionError) for result in results)
    assert rig.queued() == {result.task_id: 1 for result in results}


def test_a_description_in_doubt(rig: Rig) -> None:
    """desc whose task is in doubt fails, and the next one asks again."""
    client = rig.client()
    assert client.ping()
    rig.broker.drop_replies = Cut.RESET
    with in_time(0), pytest.raises(OperatorConnectionError):
        client.desc()
    rig.broker.heal()
    with LightOperator(rig.server.url):
        assert client.desc()["doc"] == "light"
