"""A renewal: the next case of one subject runs on ranks that have run nothing before."""

from __future__ import annotations

from tests.verify.ranks.real import CASE, spec
from verify.ranks.pool import RankPool


def test_after_a_renewal_the_next_case_of_that_subject_runs_on_new_ranks():
    with RankPool() as pool:
        before = {}
        for name in ("Local", "Synced"):
            pool.run(spec(name), CASE)
        for target, size in pool.groups.open:
            before[target.spec] = pool.groups.open[target, size].pids
        pool.renew(spec("Local"))
        ticket = pool.submit(spec("Local"), CASE)
        pool.renew(spec("Local"))  # what is in flight is sent again
        assert {rank.ending for rank in ticket.result().ranks} == {"returned"}
        for name, same in (("Local", False), ("Synced", True)):
            pool.run(spec(name), CASE)
            (pids,) = (group.pids for key, group in pool.groups.open.items() if key[0].spec == spec(name))
            assert (pids == before[spec(name)]) is same
