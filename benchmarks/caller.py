"""Runs one of the callers written in Python and prints what it saw, in the JSON that load.c prints.

python -m caller JOB          JOB is JSON, the fields of meter.Job
"""

import dataclasses
import importlib
import json
import multiprocessing.synchronize
import os
import pickle
import sys

from fifo import percentile
from meter import Job, Meter, Tally


def _run(job: Job, index: int, wait_for_others: multiprocessing.synchronize.Barrier | None) -> Tally:
    module, _, function = job.call.partition(":")
    meter = Meter(job, index, wait_for_others.wait) if wait_for_others else Meter(job)
    getattr(importlib.import_module(module), function)(meter, job)
    return meter.tally


def _run_beside(job: Job, index: int, barrier: multiprocessing.synchronize.Barrier | None) -> int:
    """Run one caller in a process of its own; returns the end of a pipe that its tally comes through."""
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        return ours
    with open(theirs, "wb") as pipe:
        pickle.dump(_run(job, index, barrier), pipe)
    os._exit(0)


def run(job: Job) -> Tally:
    """Run as many callers as the job says, each with its part of the requests in flight."""
    barrier = multiprocessing.get_context("fork").Barrier(job.callers) if job.callers > 1 else None
    part = dataclasses.replace(job, in_flight=job.in_flight // job.callers)
    pipes = [_run_beside(part, index, barrier) for index in range(1, job.callers)]
    tally = _run(part, 0, barrier)
    for fd in pipes:
        with open(fd, "rb") as pipe:
            tally.add(pickle.load(pipe))
        os.wait()
    return tally


def main() -> None:
    """Do the job on the command line."""
    job = Job(**json.loads(sys.argv[1]))
    tally = run(job)
    kinds = {}
    for kind, latencies in tally.latencies.items():
        latencies.sort()
        ranks = {f"p{rank}_us": percentile(latencies, rank) / 1e3 for rank in (50, 95, 99)}
        if latencies:
            kinds[kind] = {"count": len(latencies), **ranks}
    found = dataclasses.asdict(tally) | {"seconds": job.seconds, "kinds": kinds}
    del found["latencies"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
