"""How tasks share a budget of trials; times come from formulas."""

import pytest

from qimeng_tvm.search.sharing import Share, Sharing


def play(sharing, seconds, sizes=None, limit=10_000):
    """Run a budget out, return its turns; ``seconds[i](trial)`` is what a trial takes, ``sizes`` how many there are."""
    turns = []
    while (found := sharing.next()) is not None:
        task, count = found
        share = sharing.shares[task]
        assert count >= 1 and not share.exhausted
        count = min(count, (sizes or {}).get(task, limit) - share.trials)
        if count <= 0:
            share.exhausted = True
            continue
        best = min(
            [*([share.seconds] if share.seconds else []), *(seconds[task](share.trials + i) for i in range(count))]
        )
        share.update(share.measured + count, best)
        turns.append((task, count))
        assert len(turns) < limit
    return turns


def flat(value):
    return lambda trial: value


def falling(value):
    return lambda trial: value / (1 + trial) ** 0.5


def test_every_task_gets_its_first_trial_before_any_gets_a_second_the_heaviest_first():
    sharing = Sharing([Share(1, 2e6), Share(3, 1e6), Share(1, 9e6), Share(1, 1e3)], 24)
    turns = play(sharing, [flat(1e-3)] * 4)
    assert turns[:4] == [(2, 1), (1, 1), (0, 1), (3, 1)]
    assert sum(count for _, count in turns) == 24 and min(s.trials for s in sharing.shares) >= 1


def test_fewer_trials_than_tasks_are_one_for_each():
    sharing = Sharing([Share(1, 1e6) for _ in range(7)], 3)
    assert sharing.total == 7
    assert sorted(play(sharing, [flat(1e-3)] * 7)) == [(i, 1) for i in range(7)]
    again = Sharing([Share(1, 1e6, recorded=1) for _ in range(7)], 3)
    assert again.room == 0 and again.next() is None


@pytest.mark.parametrize(("weights", "times"), [((1, 9), (1e-3, 1e-3)), ((1, 1), (1e-3, 9e-3))])
def test_what_takes_most_of_the_time_gets_most_of_the_trials(weights, times):
    sharing = Sharing([Share(w, 1e6) for w in weights], 40)
    play(sharing, [falling(t) for t in times])
    light, heavy = sharing.shares
    # Never more than its even part and half of the rest.
    assert 26 <= heavy.trials <= 30 and light.trials + heavy.trials == 40


def test_what_still_improves_gets_more_than_what_does_not():
    sharing = Sharing([Share(1, 1e6), Share(1, 1e6)], 60)
    play(sharing, [flat(1e-3), lambda trial: 1e-3 * 0.97**trial])
    assert sharing.shares[1].trials > sharing.shares[0].trials


def test_what_is_near_the_peak_is_left_alone():
    # 1e9 operations at 1e12 a second take 1 ms at least.
    near, far = Share(1, 1e9, peak=1e12), Share(1, 1e9, peak=1e12)
    sharing = Sharing([near, far], 40)
    play(sharing, [flat(1.01e-3), flat(1.5e-3)])
    assert far.trials >= 28 and near.trials + far.trials == 40


def test_a_used_up_space_leaves_its_trials_to_the_others():
    sharing = Sharing([Share(9, 1e6), Share(1, 1e6), Share(1, 1e6)], 60)
    play(sharing, [flat(1e-3)] * 3, sizes={0: 5, 1: 2})
    assert [s.trials for s in sharing.shares] == [5, 2, 53]
    everything = Sharing([Share(1, 1e6), Share(1, 1e6)], 60)
    play(everything, [flat(1e-3)] * 2, sizes={0: 5, 1: 2})
    assert [s.trials for s in everything.shares] == [5, 2]


def test_the_same_budget_again_has_nothing_left_to_do_and_a_larger_one_the_difference():
    first = Sharing([Share(9, 1e6), Share(1, 1e6), Share(1, 1e6)], 60)
    play(first, [falling(1e-3)] * 3, sizes={1: 2})
    trials = [s.trials for s in first.shares]
    assert sum(trials) == 60
    again = Sharing([Share(s.weight, 1e6, recorded=n) for s, n in zip(first.shares, trials, strict=True)], 60)
    play(again, [falling(1e-3)] * 3, sizes={1: 2})
    assert [s.trials for s in again.shares] == trials
    more = Sharing([Share(s.weight, 1e6, recorded=n) for s, n in zip(first.shares, trials, strict=True)], 70)
    play(more, [falling(1e-3)] * 3, sizes={1: 2})
    assert sum(s.trials for s in more.shares) == 70


def test_what_one_task_was_tuned_with_before_does_not_use_up_the_others_trials():
    tuned, new = Share(1, 1e6, recorded=500, seconds=1e-3), Share(1, 1e6)
    sharing = Sharing([tuned, new], 40)
    assert sharing.counted == 30
    play(sharing, [flat(1e-3)] * 2)
    assert (tuned.measured, new.measured) == (0, 10)
    late = Sharing([Share(1, 1e6, recorded=500), Share(1, 1e6, recorded=500), Share(1, 1e6)], 40)
    turns = play(late, [flat(1e-3)] * 3)
    assert turns == [(2, 1)], "one trial for every task, also where there is no room"


def test_one_task_gets_whole_batches_until_the_trials_are_used_up():
    assert play(Sharing([Share(1, 1e6)], 20), [flat(1e-3)]) == [(0, 8), (0, 8), (0, 4)]


def test_tasks_that_fail_every_time_neither_starve_nor_take_all():
    broken, good = Share(1, 1e6), Share(1, 1e6)
    sharing = Sharing([broken, good], 40)
    while (found := sharing.next()) is not None:
        share = sharing.shares[found[0]]
        share.update(share.measured + found[1], 0.0 if share is broken else 1e-3)
    assert broken.trials >= 10 and good.trials >= 10 and broken.trials + good.trials == 40
