"""The host: threads, devices and memory that jax takes, chosen before it has computed, and not after."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from reference import host

COUNT = """
import os, sys
from reference import host
if sys.argv[1] == "before":
    import jax
    jax.local_devices(backend="cpu")
host.start(threads=1)
import jax
jax.local_devices(backend="cpu")
names = []
for task in os.listdir("/proc/self/task"):
    try:
        names.append(open(f"/proc/self/task/{task}/comm").read().strip())
    except (FileNotFoundError, ProcessLookupError):
        pass  # a thread that ended since it was listed
print(sum(name.startswith("tf_XLAEigen") for name in names), os.environ.get("NPROC", "none"))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    ("when", "given", "printed"),
    [("after", None, "1 none"), ("before", None, None), ("after", "2", "2 2")],
)
def test_jax_computes_on_the_threads_asked_for_unless_it_has_begun_or_the_user_chose(when, given, printed):
    environment = {key: value for key, value in os.environ.items() if key != "NPROC"}
    if given:
        environment["NPROC"] = given
    done = subprocess.run(
        [sys.executable, "-c", COUNT, when],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment,
    )
    count, left = done.stdout.split()
    if printed is None:
        assert (int(count) > 1, left) == (True, "none")
    else:
        assert done.stdout.strip() == printed


@pytest.mark.parametrize(
    ("own", "users", "found"), [(True, "", "cpu"), (False, "", ""), (True, "cuda", "cuda")]
)
def test_only_a_process_of_ours_looks_at_the_cpu_alone_and_what_a_user_names_stands(
    monkeypatch, own, users, found
):
    config = SimpleNamespace(jax_platforms=users)
    config.update = lambda name, value: setattr(config, name, value)
    monkeypatch.setattr(host.jax, "config", config)
    host.start(cpu_only=own)
    assert config.jax_platforms == found


@pytest.mark.parametrize("users", [None, "true"])
def test_the_first_look_takes_no_memory_of_a_gpu_ahead_unless_the_user_wants_it(monkeypatch, users):
    name, seen = "XLA_PYTHON_CLIENT_PREALLOCATE", []
    monkeypatch.delenv(name, raising=False)
    if users:
        monkeypatch.setenv(name, users)
    monkeypatch.setattr(host, "_found", None)
    devices = host.jax.local_devices(backend="cpu")
    monkeypatch.setattr(
        host.jax, "local_devices", lambda backend: (seen.append(os.environ[name]), devices)[1]
    )
    with host.precise():
        pass
    assert seen == [users or "false"]
    assert os.environ.get(name) == users
