"""Plays the life of a daemon's consumers to the roster: deaths, wear, reloads, scaling; and walks its backoff."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gaspar.roster import Backoff, Entry, Orders, Roster


def roster(target: int) -> Roster:
    """Return a roster whose consumers are all ready."""
    found = Roster(target)
    found.generation = 1
    for each in found.next_orders(0.0).fork:
        found.on_ready(each.number, 1000 + each.number)
    assert found.settled
    return found


def numbers(entries: list[Entry]) -> list[int]:
    return [each.number for each in entries]


def obey(on: Roster, orders: Orders) -> None:
    """Do at once what is ordered: who is forked is ready, who is retired is gone."""
    for each in orders.fork:
        on.on_ready(each.number, 1000 + each.number)
    for each in orders.retire:
        on.on_gone(each.number, True, 0.0)


def settle(on: Roster, now: float = 0.0) -> list[Orders]:
    """Obey until nothing is ordered; returns the orders."""
    given: list[Orders] = []
    while any(orders := on.next_orders(now)):
        given.append(orders)
        obey(on, orders)
        assert len(given) < 100, "this never ends"
    return given


# ---- whom to fork ----


def test_as_many_as_wanted_are_forked_at_the_start_once() -> None:
    found = Roster(3)
    found.generation = 1
    fork, retire = found.next_orders(0.0)
    assert (numbers(fork), retire) == ([1, 2, 3], [])
    assert sorted(each.slot for each in fork) == [0, 1, 2]
    assert found.next_orders(0.0) == ([], [])
    assert not found.settled
    assert found.ready == []


def test_who_is_ready_is_known_by_its_process() -> None:
    found = Roster(1)
    ((entry,), _) = found.next_orders(0.0)
    assert found.on_ready(entry.number, 4711) is entry
    assert found.get(entry.number) is entry
    assert entry.pid == 4711
    assert found.ready == [entry]
    assert found.settled


def test_nobody_knows_a_consumer_that_never_was() -> None:
    found = roster(1)
    assert found.on_ready(99, 1) is None
    assert found.on_gone(99, True, 0.0) is None
    assert found.get(99) is None
    assert found.next_orders(0.0) == ([], [])


def test_a_dead_consumer_is_replaced_in_its_slot_with_a_number_of_its_own() -> None:
    found = roster(3)
    gone = found.on_gone(2, True, 1.0)
    assert gone is not None and gone.number == 2
    ((entry,), retire) = found.next_orders(1.0)
    assert (entry.number, entry.slot, retire) == (4, gone.slot, [])


def test_consumers_that_die_early_again_and_again_are_waited_for() -> None:
    found = Roster(1)
    now = 0.0
    for _ in range(Backoff.FREE):
        ((entry,), _) = found.next_orders(now)
        found.on_gone(entry.number, False, now)
    ((entry,), _) = found.next_orders(now)
    found.on_gone(entry.number, False, now)
    assert found.next_orders(now) == ([], [])
    assert found.not_before == now + Backoff.FIRST
    assert numbers(found.next_orders(found.not_before).fork) == [Backoff.FREE + 2]


def test_the_end_of_one_that_was_let_go_is_no_death() -> None:
    found = roster(4)
    found.target = 1
    for each in found.next_orders(0.0).retire:
        found.on_gone(each.number, False, 0.0)
    assert found.settled
    assert not found.backoff.slowed
    assert found.not_before == 0.0


# ---- whom to let go ----


def test_a_worn_consumer_is_let_go_when_its_successor_is_ready_and_not_before() -> None:
    found = roster(2)
    (old, _) = found.ready
    old.worn = "requests"
    assert not found.settled
    ((new,), retire) = found.next_orders(0.0)
    assert retire == []
    assert found.next_orders(0.0) == ([], [])
    found.on_ready(new.number, 1)
    assert found.next_orders(0.0) == ([], [old])
    assert old.retiring
    assert found.next_orders(0.0) == ([], [])
    assert not found.settled  # it is still there
    found.on_gone(old.number, True, 0.0)
    assert found.settled


def test_who_wears_is_replaced_one_after_the_other() -> None:
    found = roster(4)
    for each in found:
        each.worn = "requests"
    steps = settle(found)
    assert all(len(fork) <= 1 and len(retire) <= 1 for fork, retire in steps)
    assert numbers(found.ready) == [5, 6, 7, 8]
    assert found.settled


def test_whoever_dies_while_another_is_replaced_is_the_one_that_is_replaced() -> None:
    found = roster(2)
    worn, fresh = found.ready
    worn.worn = "requests"
    ((new,), _) = found.next_orders(0.0)
    found.on_gone(fresh.number, True, 1.0)
    assert found.next_orders(1.0) == ([], [])  # two are there: the worn one and the new one
    found.on_ready(new.number, 1)
    ((newer,), retire) = found.next_orders(1.0)
    assert retire == []
    found.on_ready(newer.number, 1)
    assert found.next_orders(1.0) == ([], [worn])


def test_a_worn_consumer_that_dies_before_its_successor_is_ready_needs_no_other() -> None:
    found = roster(2)
    worn = found.ready[0]
    worn.worn = "requests"
    ((new,), _) = found.next_orders(0.0)
    found.on_gone(worn.number, True, 1.0)
    assert found.next_orders(1.0) == ([], [])
    found.on_ready(new.number, 1)
    assert found.next_orders(1.0) == ([], [])
    assert found.settled


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (4, 3), (2, 2)])
def test_scaling_forks_or_lets_go_as_many_as_it_takes(before: int, after: int) -> None:
    found = roster(before)
    found.target = after
    fork, retire = found.next_orders(0.0)
    assert len(fork) == max(0, after - before)
    assert numbers(retire) == list(range(before, after, -1))  # the youngest first
    obey(found, Orders(fork, retire))
    assert found.settled
    assert found.next_orders(0.0) == ([], [])


def test_scaling_down_lets_the_worn_go_first() -> None:
    found = roster(3)
    found.ready[1].worn = "requests"
    found.target = 2
    assert [numbers(each) for each in found.next_orders(0.0)] == [[], [2]]


def test_scaling_down_before_all_are_ready_lets_go_who_is_too_many_later() -> None:
    found = Roster(2)
    (fork, _) = found.next_orders(0.0)
    found.target = 1
    assert found.next_orders(0.0) == ([], [])
    found.on_ready(fork[0].number, 1)
    assert found.next_orders(0.0) == ([], [])
    found.on_ready(fork[1].number, 2)
    assert found.next_orders(0.0) == ([], [fork[1]])


# ---- reloads ----


def test_a_reload_shows_one_new_consumer_before_an_old_one_goes() -> None:
    found = roster(2)
    found.trial = 2
    ((first,), retire) = found.next_orders(0.0)
    assert (first.generation, retire) == (2, [])
    assert found.settled is False
    assert found.next_orders(0.0) == ([], [])
    found.on_ready(first.number, 1)
    assert (found.generation, found.trial) == (2, 0)
    steps = settle(found)
    assert all(len(fork) <= 1 and len(retire) <= 1 for fork, retire in steps)
    assert {each.generation for each in found} == {2}
    assert found.settled
    assert found.of(1) == []


def test_a_reload_that_fails_leaves_the_old_ones_alone() -> None:
    found = roster(2)
    before = numbers(found.ready)
    found.trial = 2
    ((first,), _) = found.next_orders(0.0)
    found.trial = 0  # it failed to set up
    assert found.next_orders(0.0) == ([], [])
    found.on_gone(first.number, False, 0.0)
    assert found.next_orders(0.0) == ([], [])
    assert numbers(found.ready) == before
    assert found.settled


def test_the_dead_consumers_of_a_forker_are_replaced_by_its_successors() -> None:
    found = roster(2)
    for each in found.of(1):
        found.on_gone(each.number, True, 1.0)
    found.generation = 2
    fork, retire = found.next_orders(1.0)
    assert [each.generation for each in fork] == [2, 2]
    assert retire == []


# ---- all of it ----


class Machine(RuleBasedStateMachine):
    """Plays forkers, consumers and an operator, and holds the roster's orders against its promises."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.roster = Roster(count)
        self.roster.generation = self.newest = 1
        self.now = 0.0
        self.most = 0  # entries at once
        self.forked: set[int] = set()
        self.retired: set[int] = set()

    def orders(self) -> None:
        for _ in range(100):
            if not any(self.next_orders()):
                return
        raise AssertionError("this never ends")

    def next_orders(self) -> Orders:
        ready = len(self.roster.ready)
        stale = {each.number for each in self.roster.ready if self.is_stale(each)}
        staying = [each for each in self.roster if not each.retiring]
        trial = self.roster.of(self.roster.trial)
        found = self.roster.next_orders(self.now)
        self.most = max(self.most, len(list(self.roster)))
        assert self.forked.isdisjoint(numbers(found.fork)), "forked twice"
        assert self.retired.isdisjoint(numbers(found.retire)), "let go twice"
        self.forked |= set(numbers(found.fork))
        self.retired |= set(numbers(found.retire))
        for each in found.retire:
            assert each.pid and each.retiring
            assert each.number in stale or not any(map(self.is_stale, self.roster.ready)), "a fresh before a stale one"
        assert len(self.roster.ready) == ready - len(found.retire)
        assert not found.retire or len(self.roster.ready) >= self.roster.target, "too few are left"
        for each in found.fork:
            assert each.pid == 0 and each.generation in (self.roster.generation, self.roster.trial)
            assert (each.generation != self.roster.trial) or not trial, "two trials"
        after = [each for each in self.roster if not each.retiring]
        if found.fork:
            others = [each for each in after if not self.roster.trial or each.generation != self.roster.trial]
            assert len(others) <= max(self.roster.target + 1, len(staying))
        return found

    def is_stale(self, entry: Entry) -> bool:
        return bool(entry.worn) or entry.generation not in (self.roster.generation, self.roster.trial)

    def some(self, data: st.DataObject, entries: list[Entry]) -> Entry | None:
        return data.draw(st.sampled_from(entries)) if entries else None

    # what happens

    @rule()
    def orders_are_given(self) -> None:
        self.orders()

    @rule(seconds=st.sampled_from([0.01, 1.0, Backoff.LONGEST, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.orders()

    @rule(data=st.data())
    def one_is_ready(self, data: st.DataObject) -> None:
        if entry := self.some(data, [each for each in self.roster if not each.pid]):
            assert self.roster.on_ready(entry.number, 1000 + entry.number) is entry
            assert entry.generation != self.roster.trial
            self.orders()

    @rule(data=st.data(), worked=st.booleans())
    def one_dies(self, data: st.DataObject, worked: bool) -> None:
        if entry := self.some(data, list(self.roster)):
            assert self.roster.on_gone(entry.number, worked, self.now) is entry
            assert self.roster.get(entry.number) is None
            self.orders()

    @rule(data=st.data())
    def one_is_worn(self, data: st.DataObject) -> None:
        if entry := self.some(data, self.roster.ready):
            entry.worn = "requests"
            self.orders()

    @rule()
    def all_are_worn(self) -> None:
        for each in self.roster:
            each.worn = "requests"
        self.orders()

    @rule(count=st.integers(1, 5))
    def the_operator_scales(self, count: int) -> None:
        self.roster.target = count
        self.orders()

    @precondition(lambda self: not self.roster.trial)
    @rule()
    def a_reload_begins(self) -> None:
        self.newest += 1
        self.roster.trial = self.newest
        self.orders()

    @precondition(lambda self: self.roster.trial)
    @rule()
    def a_reload_fails(self) -> None:
        failed, self.roster.trial = self.roster.trial, 0
        self.orders()
        for each in self.roster.of(failed):
            self.roster.on_gone(each.number, False, self.now)
        self.orders()

    @rule()
    def a_forker_dies(self) -> None:
        for each in self.roster.of(self.roster.generation):
            self.roster.on_gone(each.number, True, self.now)
        if not self.roster.trial:
            self.newest += 1
            self.roster.generation = self.newest
        self.orders()

    # what is always so

    @invariant()
    def no_two_share_a_slot_or_a_number(self) -> None:
        entries = list(self.roster)
        assert len({each.slot for each in entries}) == len({each.number for each in entries}) == len(entries)

    @invariant()
    def no_more_slots_are_used_than_there_were_entries_at_once(self) -> None:
        self.most = max(self.most, len(list(self.roster)))
        assert all(0 <= each.slot < self.most for each in self.roster)

    @invariant()
    def settled_is_said_of_exactly_those_that_should_be_there(self) -> None:
        entries = list(self.roster)
        right = all(each.pid and not each.retiring and not self.is_stale(each) for each in entries)
        assert self.roster.settled == (right and len(entries) == self.roster.target)

    def teardown(self) -> None:
        """Let who is forked become ready and who is let go end: then all is as it should be, and stays so."""
        if not hasattr(self, "roster"):
            return
        self.now = max(self.now, self.roster.not_before)
        for _ in range(3 * len(list(self.roster)) + 3 * self.roster.target + 10):
            self.orders()
            for each in self.roster:
                if not each.pid:
                    self.roster.on_ready(each.number, 1000 + each.number)
                elif each.retiring:
                    self.roster.on_gone(each.number, True, self.now)
        assert self.roster.settled
        assert not self.roster.trial
        assert self.next_orders() == ([], [])


TestRoster = Machine.TestCase
TestRoster.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# ---- backoff ----


def test_the_first_early_deaths_cost_nothing() -> None:
    backoff = Backoff()
    for _ in range(Backoff.FREE):
        assert backoff.died(0.0, useful=False) == 0.0
        assert not backoff.slowed


def test_each_further_death_doubles_the_wait_up_to_the_longest() -> None:
    backoff = Backoff()
    waits = [backoff.died(0.0, useful=False) for _ in range(40)][Backoff.FREE :]
    assert backoff.slowed
    assert waits[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert set(waits[7:]) == {Backoff.LONGEST}


@pytest.mark.parametrize(("lived", "useful"), [(0.0, True), (Backoff.EARLY + 0.1, False), (1e9, True)])
def test_one_that_lived_or_worked_begins_a_new_row(lived: float, useful: bool) -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.died(0.0, useful=False)
    assert backoff.died(lived, useful) == 0.0
    assert not backoff.slowed
    assert [backoff.died(0.0, useful=False) for _ in range(Backoff.FREE)] == [0.0] * Backoff.FREE
    assert backoff.died(0.0, useful=False) == Backoff.FIRST


def test_dying_exactly_at_the_border_is_early() -> None:
    backoff = Backoff()
    waits = [backoff.died(Backoff.EARLY, useful=False) for _ in range(Backoff.FREE + 1)]
    assert waits[-1] == Backoff.FIRST


@given(st.lists(st.tuples(st.floats(0, 1e9), st.booleans()), max_size=60))
def test_a_wait_is_bounded_and_there_is_one_only_when_slowed(deaths: list[tuple[float, bool]]) -> None:
    backoff = Backoff()
    for lived, useful in deaths:
        wait = backoff.died(lived, useful)
        assert (Backoff.FIRST <= wait <= Backoff.LONGEST) if backoff.slowed else wait == 0.0


def test_the_next_successor_is_forked_with_the_order_to_let_one_go() -> None:
    found = roster(2)
    for each in found:
        each.worn = "requests"
    ((new,), _) = found.next_orders(0.0)
    found.on_ready(new.number, 1)
    fork, retire = found.next_orders(0.0)
    assert (len(fork), len(retire)) == (1, 1)
    assert found.next_orders(0.0) == ([], [])


def test_who_dies_during_a_reloads_trial_is_replaced_by_the_old_code() -> None:
    found = roster(2)
    found.trial = 2
    found.next_orders(0.0)
    found.on_gone(1, True, 1.0)
    ((entry,), retire) = found.next_orders(1.0)
    assert (entry.generation, retire) == (1, [])


def test_a_trial_ends_with_its_forker() -> None:
    found = roster(2)
    found.trial = 2
    ((trial,), _) = found.next_orders(0.0)
    assert found.on_forker_gone(2, 1.0) == [trial]
    assert found.next_orders(1.0) == ([], [])


def test_a_forker_that_takes_over_leaves_no_trial() -> None:
    found = roster(2)
    found.trial = 2
    found.next_orders(0.0)
    found.on_forker_gone(1, 1.0)
    found.take_over(3)
    fork, _ = found.next_orders(9.0)
    assert {each.generation for each in fork} == {3}


# ---- stepping aside ----


def test_another_is_forked_at_once_for_one_that_steps_aside() -> None:
    roster = Roster(2)
    first, second = (each.number for each in roster.next_orders(0.0).fork)
    assert roster.step_aside(first, 2) is None, "it is not ready"
    roster.on_ready(first, 11)
    roster.on_ready(second, 12)
    aside = roster.step_aside(first, 2)
    assert aside is not None and aside.retiring and aside.aside
    assert roster.step_aside(first, 2) is None, "it has done so"
    forks, retire = roster.next_orders(0.0)
    assert [each.number for each in forks] == [3] and not retire
    assert not roster.settled


def test_no_more_step_aside_than_may() -> None:
    roster = Roster(1)
    for number, most, may in ((1, 1, True), (2, 1, False), (2, 2, True), (3, 2, False)):
        roster.next_orders(0.0)
        roster.on_ready(number, 10 + number)
        assert (roster.step_aside(number, most) is not None) is may
    roster.on_gone(1, True, 1.0)
    assert roster.step_aside(3, 2) is not None


def test_nobody_unknown_steps_aside() -> None:
    assert Roster(1).step_aside(7, 5) is None
