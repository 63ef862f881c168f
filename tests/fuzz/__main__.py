"""The long form: `python -m tests.fuzz --count 5000 --seed 0 [KIND ...]`, shared among the kinds by their cost."""

from __future__ import annotations

import argparse
import json
import sys

from tests.fuzz.campaign import attacks, watched

# kind -> its share: what is quick to try is tried more often
SHARES = {"images": 10, "scans": 4, "models": 5, "rows": 4, "logs": 5, "caches": 4, "configs": 3, "published": 3,
          "archives": 12}  # fmt: skip
SHOWN = 5  # faults of a kind that are printed whole
COLUMNS = ("kind", "tried", "refused", "accepted", "tracebacks", "hangs", "outside", "killed", "peak_mb", "seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(SHARES)}")
    parser.add_argument("--count", type=int, default=5000, help="attacks in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help="number of the first attack, to make one again")
    options = parser.parse_args()
    if options.child:
        for record in attacks(options.child, options.count, options.seed, options.first):
            print(json.dumps(record), flush=True)  # noqa: T201
        return 0
    kinds = options.kinds or list(SHARES)
    print("  ".join(f"{name:>10}" for name in COLUMNS), flush=True)  # noqa: T201
    sums = []
    for kind in kinds:
        share = -(-options.count * SHARES[kind] // sum(SHARES[one] for one in kinds))
        sums.append(watched(kind, share, options.seed))
        print("  ".join(f"{sums[-1][name]!s:>10}" for name in COLUMNS), flush=True)  # noqa: T201
        for fault in sums[-1]["faults"][:SHOWN]:  # type: ignore[index]
            print(json.dumps(fault), file=sys.stderr)  # noqa: T201
    return int(any(one["faults"] for one in sums))


if __name__ == "__main__":
    sys.exit(main())
