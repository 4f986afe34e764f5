"""`make scorecard`: damages hundreds of deltas, our own and those of the zoo, asks real Chroma which are harmed, and
scores every checker on them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.score.bases import BASES
from bench.score.checkers import OURS, RIVALS
from bench.score.figures import Outcome, Result, Tally, tally
from bench.score.plan import SEEDS, UNDAMAGED, Case, Group, cases
from shared.storage.scratch import scratch_folder, sweep_scratch

_WORKERS = 2
_CHECKERS = (*OURS, *RIVALS)
_GOODBYE_SECONDS = 10.0
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scorecard and prints it.

    Returns 1 when any depth of ours raised a false alarm or an exception, or would have a delta quarantined of which
    Chroma gives back everything.
    """
    options = _parser().parse_args(arguments)
    groups: list[Group] = list(SEEDS) if options.seeds == "both" else [options.seeds]
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sweep_scratch()
    plan = [case for group in groups for case in cases(group, quick=options.quick)]
    if options.only:
        plan = [case for case in plan if options.only in f"{case.source} {case.kind} {case.base} {case.seed}"]
    results: list[Result] = []
    try:
        for line in judged(plan, options.keep):
            results.append(Result.of(line))
            _progress(len(results), len(plan), started)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return _INTERRUPTED
    order = {case: position for position, case in enumerate(plan)}
    results.sort(key=lambda result: order[result.case])
    for group in groups:
        of_group = [result for result in results if result.case.group == group]
        for bases, zoo in (("our own bases", False), ("the zoo's bases", True)):
            if some := [result for result in of_group if (result.case.source == "zoo") is zoo]:
                _print_group(group, bases, some)
    if options.list_misses:
        _print_misses(results)
    _say(f"\n{len(results)} deltas in {time.monotonic() - started:.0f} s")
    sums = tally(results, OURS)
    alarms = sum(sums.count(checker, Outcome.FALSE_ALARM) for checker in OURS)
    return 1 if sums.raised or alarms or sums.destroyed_complete.total() else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.score.scorecard", description=__doc__)
    parser.add_argument("--seeds", choices=[*SEEDS, "both"], default="both", help="which group of seeds (both)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the deltas")
    parser.add_argument("--list-misses", action="store_true", help="each miss and false alarm, with how to make it")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only cases whose source, kind, base and seed contain this"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy what structure misses, or alarms at, to here")
    return parser


def judged(plan: Sequence[Case], keep: Path | None = None) -> Iterator[dict[str, Any]]:
    """The results of these cases, as they come. No process and no folder is left when it ends, however it ends.

    Args:
        plan: The cases.
        keep: A folder for copies of the deltas that `structure` misses or raises a false alarm at.
    """
    with ExitStack() as stack:
        root = stack.enter_context(scratch_folder())
        workers = [stack.enter_context(_worker(root, number, keep)) for number in range(_WORKERS)]
        needed = {case.base for case in plan} - {""}
        for _ in _done(workers, [{"base": name} for name in BASES if name in needed]):
            pass
        yield from _done(workers, [asdict(case) for case in plan])


@contextlib.contextmanager
def _worker(root: Path, number: int, keep: Path | None) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    process = subprocess.Popen(  # noqa: S603 -- ours
        [sys.executable, "-m", "bench.score.worker", str(root), str(number), *([str(keep.resolve())] if keep else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,  # Ctrl-C is ours to handle: the worker must outlive it long enough to clean up
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _done(workers: Sequence[subprocess.Popen[str]], jobs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Has the workers do jobs, each one at a time; the results as they come.

    Raises:
        RuntimeError: A worker died.
    """
    waiting = list(reversed(jobs))
    with selectors.DefaultSelector() as selector:
        for worker in workers[: len(jobs)]:
            assert worker.stdout is not None
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
            _send(worker, waiting.pop())
        while selector.get_map():
            for key, _ in selector.select():
                line = key.data.stdout.readline()
                if not line:
                    raise RuntimeError(f"a worker ended with code {key.data.wait()}")
                if waiting:
                    _send(key.data, waiting.pop())
                else:
                    selector.unregister(key.fileobj)
                yield json.loads(line)


def _send(worker: subprocess.Popen[str], job: dict[str, Any]) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()


def _progress(done: int, total: int, started: float) -> None:
    if sys.stderr.isatty() or done % 200 == 0:
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        sys.stderr.write(f"{done} of {total} deltas, {time.monotonic() - started:.0f} s{end}")
        sys.stderr.flush()


def _say(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def _print_group(group: Group, bases: str, results: Sequence[Result]) -> None:
    _say(f"\n== seeds: {group}, {bases}, {len(results)} deltas ==\n")
    kinds: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        kinds[result.case.kind].append(result)
    rows = [(kind, tally(of_kind, _CHECKERS)) for kind, of_kind in kinds.items()]
    notable = [(kind, sums) for kind, sums in rows if kind == UNDAMAGED or _notable(sums)]
    named = {kind for kind, _ in notable}
    rest = defaultdict(list)
    for result in results:
        if result.case.kind not in named:
            rest[result.case.source].append(result)
    _say(f"{'':42}{'':>8}{'':>8}  -- held by -------------------{'value-only':>12}{'refused':>9}{'false':>7}")
    _say(
        f"{'kind':42}{'deltas':>8}{'harmful':>8}{'listing':>9}{'header':>8}{'struct.':>8}{'+manif.':>8}"
        f"{'held/of':>12}{'by rule':>9}{'alarms':>7}"
    )
    for kind, sums in notable:
        _say(_row(kind, sums))
    for source, others in rest.items():
        count = len({result.case.kind for result in others})
        _say(_row(f"({count} other {source} kinds)", tally(others, _CHECKERS)))
    _print_summary(tally(results, _CHECKERS))


def _notable(sums: Tally) -> bool:
    alarms = sum(sums.count(checker, Outcome.FALSE_ALARM) for checker in OURS)
    return bool(alarms or sums.count("structure", Outcome.MISSED) or sums.undetermined or sums.raised)


def _row(kind: str, sums: Tally) -> str:
    held = [sums.count(checker, Outcome.HELD) for checker in OURS]
    values = f"{sums.count('structure', Outcome.VALUE_HELD)}/{sums.value_only}" if sums.value_only else "-"
    alarms = max(sums.count(checker, Outcome.FALSE_ALARM) for checker in OURS)
    refused = sums.count("structure", Outcome.REFUSED)
    remark = f"  undetermined {sums.undetermined}" if sums.undetermined else ""
    remark += f"  RAISED {sums.raised}" if sums.raised else ""
    return (
        f"{kind:42}{sums.cases:8}{sums.harmful:8}{held[0]:9}{held[1]:8}{held[2]:8}{held[3]:8}"
        f"{values:>12}{refused or '-':>9}{alarms or '-':>7}{remark}"
    )


def _print_summary(sums: Tally) -> None:
    _say(
        f"\nharmful {sums.harmful + sums.value_only}: {sums.harmful} in structure, {sums.value_only} in values alone; "
        f"damaged but harmless {sums.harmless}; healthy {sums.healthy}; undetermined {sums.undetermined}"
    )
    _say(
        f"{'':20}{'held':>9}{'':>9}{'values':>9}{'of all':>9}{'refused':>9}{'false alarms':>14}"
        f"{'destroyed':>11}{'of complete':>13}"
    )
    for checker in _CHECKERS:
        values = f"{sums.count(checker, Outcome.VALUE_HELD)}/{sums.value_only}"
        _say(
            f"{checker:20}{sums.count(checker, Outcome.HELD):9}{sums.share(checker):8.1f}%{values:>9}"
            f"{sums.share(checker, values=True):8.1f}%{sums.count(checker, Outcome.REFUSED):9}"
            f"{sums.count(checker, Outcome.FALSE_ALARM):14}"
            + (f"{f'{sums.destroyed[checker]}/{sums.asked[checker]}':>11}" if checker in OURS else f"{'-':>11}")
            + (f"{sums.destroyed_complete[checker]:13}" if checker in OURS else f"{'-':>13}")
        )


def _print_misses(results: Sequence[Result]) -> None:
    for title, wanted in (
        ("False alarms", Outcome.FALSE_ALARM), ("Missed at structure", Outcome.MISSED),
        ("Missed at structure, values alone", Outcome.VALUE_MISSED), ("Refused by rule", Outcome.REFUSED),
    ):  # fmt: skip
        checkers = OURS if wanted is Outcome.FALSE_ALARM else ("structure",)
        shown = [(result, name) for result in results for name in checkers if result.outcome(name) is wanted]
        _say(f"\n== {title}: {len(shown)} ==")
        for result, name in shown:
            case, said = result.case, result.said[name]
            _say(f"{case.kind} | {case.base or case.source} | seed {case.seed} | {name}: {said['status']}")
            _say(f"    done: {result.done}\n    Chroma: {result.harm or 'all well'} ({result.sort or 'harmless'})")
            _say(f"    findings: {said['reason'] or 'none'}")
    destroyed = [result for result in results if not result.harm and result.witness and result.witness["moved"]]
    _say(f"\n== Destroyed although Chroma gives back everything: {len(destroyed)} ==")
    for result in destroyed:
        _say(f"{result.case.kind} | {result.case.base or result.case.source} | seed {result.case.seed}")
        _say(f"    done: {result.done}\n    second witness: {result.witness and result.witness['why']}")


if __name__ == "__main__":
    sys.exit(main())
