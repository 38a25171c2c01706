"""Run a function in processes that are forked from one that has only imported: importing takes
longer than it does.
"""

import multiprocessing
import sys

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mtst_utils", "transformers.models.auto.modeling_auto"])


def _answer(send, start, function, args):
    start.wait()
    send.send(function(*args))


def package_modules():
    """The names of this package's modules that are loaded."""
    return [name for name in sys.modules if name.startswith("mtst_utils")]


def run_forked(function, *args, processes=1):
    """What it returns in each of them; they begin at the same moment. EOFError when one dies."""
    start, running = FORKS.Barrier(processes), []
    for _ in range(processes):
        receive, send = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_answer, args=(send, start, function, args))
        process.start()
        send.close()  # the other end is then the only one: when the process dies, reading ends
        running.append((process, receive))
    answers = [receive.recv() for _, receive in running]
    for process, _ in running:
        process.join()
    return answers
