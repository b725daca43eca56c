"""The power of the suite, measured: the fault catalogue and the right subjects, judged by worker processes.

`units` what is to do, `judging` does one unit, `worker` the process that does, `crew` the parent's side of
all workers, `outcome` what came out, `score` outcomes of all seeds together, `table`, `markdown`, `document`
and `progress` what people and programs read, `command` the command `faults`.
"""
