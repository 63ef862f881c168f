"""Record the golden files anew after a change that is meant: python tests/golden/make.py, then read the diff."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "leaderboard"))

import plausible  # noqa: E402
from test_figures import shown  # noqa: E402

from kdad_bench.leaderboard import figures, html, markdown, pages, store  # noqa: E402
from kdad_bench.leaderboard.board import boards  # noqa: E402


def main() -> None:
    """The invented rows once (they stay as recorded, also when the schema grows), and what is drawn from them."""
    results = HERE / "results"
    if not results.exists():
        for row in plausible.mixed_table():
            store.write(row, results)
        store.compact(results)
        (results / ".lock").unlink()
    (HERE / "leaderboard.md").write_text(markdown.leaderboard(store.read(results)), encoding="utf-8", newline="\n")
    found = store.read(results)
    body = html.body(boards(found.table), found.table, found.problems, {})
    (HERE / "leaderboard_body.html").write_text(body + "\n", encoding="utf-8", newline="\n")
    plan = figures._plan(boards(found.table), found.table.to_pylist())
    said = {name: shown(make()) for name, make in plan}
    text = json.dumps(said, indent=1, ensure_ascii=False)
    (HERE / "figures.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    drawn = HERE / "drawn"
    pages.draw_pages(results, drawn)
    shutil.move(drawn / "leaderboard.csv", HERE / "leaderboard.csv")
    shutil.rmtree(drawn)


if __name__ == "__main__":
    main()
