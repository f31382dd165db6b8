"""`python -m tests.mutants [NAME ...]`: try every fault, or the named ones, and say which the fast tests notice.

First the tests have to pass without a fault. Then each fault is put into a copy of the source by itself, and the
tests that should notice it are run; where they do not, all fast tests of the engine are. Exit code 1 if a fault
survives, or is none.
"""

import argparse
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .fault import Fault, FaultError, node_ids
from .faults import FAULTS
from .tree import Outcome, Tree, heavy_process

ROOT = Path(__file__).parents[2]
STYLES = {"killed": "green", "hangs": "green", "survived": "bold red", "broken": "bold red"}

T = TypeVar("T")
R = TypeVar("R")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try; default: all")
    parser.add_argument("-n", "--processes", type=int, default=2, help="faults tried at a time (default 2)")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds that one run of tests may take")
    return parser.parse_args()


def chosen(names: Sequence[str]) -> list[Fault]:
    """Return the faults of these names, or all.

    Raises:
        FaultError: A name is not known.
    """
    known = {fault.name: fault for fault in FAULTS}
    if unknown := [name for name in names if name not in known]:
        raise FaultError(f"there is no fault {unknown[0]!r}; the faults are {', '.join(known)}")
    return [known[name] for name in names] if names else list(FAULTS)


class Bench:
    """Copies of the source, one for each process, and the table of what happened."""

    def __init__(self, folder: Path, processes: int, seconds: float, console: Console) -> None:
        context = heavy_process()
        self.trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for number in range(processes):
            self.trees.put(Tree(ROOT, folder / str(number), context))
        self.processes = processes
        self.seconds = seconds
        self.console = console

    def each(self, what: str, work: Callable[[Tree, T], R], items: Sequence[T]) -> list[R]:
        """Do the work for every item, as many at a time as there are trees; results in the order of the items."""

        def in_a_tree(item: T) -> R:
            tree = self.trees.get()
            try:
                return work(tree, item)
            finally:
                self.trees.put(tree)

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=len(items))
            with ThreadPoolExecutor(self.processes) as pool:
                futures = [pool.submit(in_a_tree, item) for item in items]
                try:
                    for future in futures:
                        future.add_done_callback(lambda _: progress.advance(task))
                    return [future.result() for future in futures]
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def check(self, tests: Sequence[str]) -> None:
        """Make sure that the tests pass while there is no fault.

        Raises:
            FaultError: They do not; then no test's failure would mean anything.
        """
        parts = [part for start in range(self.processes) if (part := tests[start :: self.processes])]
        for outcome in self.each("without a fault", lambda tree, part: tree.run(part, self.seconds), parts):
            if outcome.kind != "survived":
                raise FaultError(f"without any fault, the tests do not pass: {outcome.kind}, {outcome.detail}")

    def try_all(self, faults: Iterable[tuple[Fault, Sequence[str]]]) -> dict[str, Outcome]:
        """Try each fault against its tests, and print what happened."""

        def attempt(tree: Tree, pair: tuple[Fault, Sequence[str]]) -> tuple[str, Outcome]:
            fault, tests = pair
            start = time.perf_counter()
            outcome = tree.try_fault(fault, tests, self.seconds)
            taken = f"{time.perf_counter() - start:.0f} s"
            style = STYLES[outcome.kind]
            self.console.print(f"[{style}]{outcome.kind:8}[/] {fault.name} ({taken})", highlight=False, end=" ")
            self.console.print(outcome.detail or fault.why, style="dim", markup=False, highlight=False)
            return fault.name, outcome

        return dict(self.each("faults", attempt, list(faults)))


def run(faults: Sequence[Fault], bench: Bench) -> dict[str, Outcome]:
    """Try the faults: each one's own tests first, all fast tests for those that these do not notice."""
    first = {fault.name: node_ids(ROOT, fault.first) for fault in faults}
    own = list(dict.fromkeys(test for tests in first.values() for test in tests))
    # A file is checked as a whole if one fault names it, so that none of its tests runs twice.
    files = [test for test in own if "::" not in test]
    bench.check(files + [test for test in own if "::" in test and test.partition("::")[0] not in files])
    outcomes = bench.try_all((fault, first[fault.name]) for fault in faults if fault.first)
    left = [fault for fault in faults if fault.name not in outcomes or outcomes[fault.name].kind == "survived"]
    if left:
        tree = bench.trees.get()
        everything = tree.fast_tests()
        bench.trees.put(tree)
        bench.console.print(f"all fast tests for {len(left)} that their own do not notice", style="dim")
        bench.check(everything)
        outcomes |= bench.try_all((fault, everything) for fault in left)
    return outcomes


def main() -> int:
    console = Console(soft_wrap=True)
    options = arguments()
    start = time.perf_counter()
    try:
        faults = chosen(options.names)
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            outcomes = run(faults, Bench(Path(folder).resolve(), options.processes, options.timeout, console))
    except FaultError as error:
        console.print(str(error), style="bold red", markup=False)
        return 2
    for fault in faults:
        if outcomes[fault.name].kind == "survived":
            console.print(f"{fault.name} survives in {fault.function}: {fault.why}", style="bold red", markup=False)
    killed = sum(outcome.kind in ("killed", "hangs") for outcome in outcomes.values())
    minutes = (time.perf_counter() - start) / 60
    console.print(f"killed {killed}/{len(faults)} ({minutes:.1f} minutes)", style="bold", highlight=False)
    return 0 if killed == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
