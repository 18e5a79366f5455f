"""reports/README.md, the claims over all committed studies, and the sentence of results in the top-level README.md.

`python -m study.index` writes both from the studies' tables; the stage `report` of a committed study does, too.
"""

from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmtlib.config import ROOT
from mmtlib.files import write_text

NOT_COMMITTED = ("quick", "smoke")
"""Studies whose reports Git ignores: everyone runs them, and none is like another."""

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""The lines of the top-level README.md between which the results stand."""


def committed(reports: Path) -> list[str]:
    """The studies that have a committed report, by name."""
    found = sorted(path.parents[1].name for path in reports.glob("*/tables/claims.csv"))
    return [name for name in found if name not in NOT_COMMITTED]


def ledger(reports: Path) -> pd.DataFrame:
    """A row for each claim with what the paper states; a column for each study: measured [interval], verdict, seeds."""
    columns, paper = {}, {}
    for study in committed(reports):
        claims = pd.read_csv(reports / study / "tables/claims.csv", keep_default_na=False, na_values=[""])
        claims = claims.fillna({"paper": ""}).set_index("claim")
        paper |= claims["paper"].to_dict()
        cells = {
            row.Index: f"{row.measured:+.1f} [{row.ci_low:+.1f}, {row.ci_high:+.1f}] {row.verdict}, {row.n_seeds} seeds"
            if row.n_seeds
            else "not run"
            for row in claims.itertuples()
        }
        columns[study] = pd.Series(cells)
    table = pd.DataFrame(columns).reindex(list(paper)).fillna("not asked")
    table.insert(0, "paper", pd.Series(paper))
    return table.rename_axis("claim").reset_index()


def write_index(root: Path = ROOT) -> None:
    """Write reports/README.md and the results in README.md, where it has the two lines for them."""
    reports, readme = root / "reports", root / "README.md"
    studies = committed(reports)
    if not studies:
        return
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    templates = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    table = ledger(reports).to_markdown(index=False, disable_numparse=True)
    write_text(reports / "README.md", templates.get_template("index.md.j2").render(studies=studies, table=table))
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END):
        head = pd.read_csv(reports / studies[0] / "tables/headline.csv").query("not withheld").set_index("model")
        verdicts = pd.read_csv(reports / studies[0] / "tables/claims.csv")["verdict"].value_counts().to_dict()
        values = {"study": studies[0], "top1": head["top1"].to_dict(), "verdicts": verdicts}
        section = templates.get_template("results.md.j2").render(**values)
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        write_text(readme, f"{before}\n{section.strip()}\n{after}")


if __name__ == "__main__":
    write_index()
