"""Rank groups: the real torch processes that run a case, and the parent's handle on them.

Rules
-----
- The parent never imports torch; a rank never imports jax or hypothesis.
- Every wait is bounded, and whatever a subject does becomes an ending of a rank.

Theory of operation
-------------------
`pool` (parent) asks `server`, a process that has imported torch once, to fork the ranks of a group. `group`
(parent) talks to each rank's `worker.loop` over a socket of its own: one message out and one message back for
a case, tensors in an anonymous memory file beside it. `worker.execution` runs a case; `collective_log`,
`capture`, `memory_layouts`, `process_state` serve it.
"""
