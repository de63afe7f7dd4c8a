"""What the risk of rows costs over one forward pass of the model over the same rows, side by side in one process.

The pass that it is held against is packed like the one that risk takes, and computes nothing but the answers' likelihoods. The
detector is fitted before, as it is where it lies in the cache. What a fit reads, the defender's rows, is held against the same
read with likelihoods, which takes whole passes and each row by itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from common import arguments, compare, even_rows, in_turn, load, report
from rich.table import Table

from titer.data import Record
from titer.data import load as load_records
from titer.data.builtin import refusals
from titer.infer.encoder import SentenceEncoder
from titer.infer.signals import row_signals
from titer.methods.finetune.base import refusal_ids
from titer.models import Template
from titer.risk import Detector, known_rows, poisoned_share
from titer.risk.detector import features, features_and_signals

FITTED, WITH_LIKELIHOODS = "the defender's rows", "the defender's rows with likelihoods"


def main() -> None:
    args = arguments(__doc__, rows=128, tokens=96)
    model, tokenizer = load(args)
    template, encoder = Template(tokenizer), None if args.quick else SentenceEncoder()
    few = 10 if args.quick else 40
    known = known_rows(load_records("builtin:harmful")[:few], load_records("builtin:general")[: 2 * few], refusals())
    detector = Detector.fit(model, template, known, encoder)
    records = [Record.from_row(row) for row in even_rows(args.rows, args.tokens, template)]
    pairs = [template.pair_ids(record) for record in records]
    ids = refusal_ids(template, refusals())

    def risk(refused: Sequence[list[int]] = ()) -> None:
        if refused:
            seen, _ = features_and_signals(model, template, records, encoder, refused, pairs)
        else:
            seen = features(model, template, records, encoder, pairs)
        poisoned_share([row.log_odds for row in detector(seen)])

    times = in_turn(
        {
            "one pass": lambda: row_signals(model, pairs),
            "risk": risk,
            "risk and the ratio to a refusal, as an audit": lambda: risk(ids),
            FITTED: lambda: features(model, template, known.records, encoder),
            WITH_LIKELIHOODS: lambda: features_and_signals(model, template, known.records, encoder),
        },
        args.rounds,
    )
    table = Table("contender", "seconds", "range", title=f"{args.rows} rows of {args.tokens} tokens")
    for name, values in times.items():
        table.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}–{max(values):.2f}")
    ratios = [compare(times, name, "one pass", 1.2 if name == "risk" else None) for name in list(times)[1:3]]
    ratios.append(compare(times, FITTED, WITH_LIKELIHOODS))
    report(args, {"rows": args.rows, "tokens": args.tokens, "ratios": ratios}, [table])


if __name__ == "__main__":
    main()
