"""`python -m devtools.zoo`: makes directories, asks Chroma and Deltaguard, and shows where they disagree."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from devtools.zoo.frozen import OUTCOMES, freeze
from devtools.zoo.kinds import KINDS
from devtools.zoo.outcomes import Outcome, examine, keep, label, table
from devtools.zoo.releases import RELEASES, cache_folder, python_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the zoo.

    Returns:
        0 where Deltaguard agrees with Chroma on every directory, 1 where it does not.
    """
    options = _parsed(arguments)
    for version in options.versions:
        python_of(version)
    seeds = range(options.seed, options.seed + options.count)
    outcomes, broken = list[Outcome](), list[str]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        waiting = {pool.submit(examine, seed, options.versions, options.kinds): seed for seed in seeds}
        for done in as_completed(waiting):
            if (error := done.exception()) is not None:  # of this program: the others go on
                broken.append(f"{waiting[done]}: {error!r}")
                continue
            outcome = done.result()
            outcomes.append(outcome)
            if options.freeze and outcome.specimen.truth.outcome in OUTCOMES:
                freeze(outcome.specimen, options.freeze)
            if outcome.disagreement:
                keep(outcome, options.output)
                print(f"{outcome.disagreement}: {label(outcome)}: {outcome.why[:160]}", file=sys.stderr)  # noqa: T201
    print("\n".join(table(outcomes)))  # noqa: T201
    print("\n".join(broken), file=sys.stderr)  # noqa: T201
    return 1 if broken or any(outcome.disagreement for outcome in outcomes) else 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m devtools.zoo", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how many directories (default: 200; nightly: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; each directory has its own")
    parser.add_argument("--versions", nargs="+", choices=RELEASES, default=list(RELEASES), metavar="VERSION")
    names = [kind.name for kind in KINDS]
    parser.add_argument("--kinds", nargs="+", choices=names, default=names, metavar="KIND")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--freeze", type=Path, metavar="FOLDER", help="freeze every directory of these about which there is a truth"
    )
    parser.add_argument("--output", type=Path, default=cache_folder() / "wrong", help="where wrong ones are kept")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
