"""The table of what was measured on an accelerator, from the JSON that `gpu.sh` left, as Markdown.

Examples:

  bash benchmarks/gpu.sh measured && python benchmarks/gpu_table.py measured
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where `gpu.sh` left its results")
    folder = parser.parse_args().folder
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    if not found:
        parser.error(f"{folder} holds no results")
    lines = ["| run | ratio | median | range | rounds | target |", "|---|---|---|---|---|---|"]
    for name, result in found.items():
        for line in result["ratios"]:
            target = "–" if line["target"] is None else f"≤ {line['target']}"
            lines.append(
                f"| {name} | {line['what']} / {line['to']} | {line['median']:.2f} | {line['low']:.2f}–{line['high']:.2f} "
                f"| {result['rounds']} | {target} |"
            )
    print("\n".join(lines))
    for name in sorted({file.stem for file in folder.glob("*.log")} - set(found)):
        print(f"\n`{name}` gave no result.")


if __name__ == "__main__":
    main()
