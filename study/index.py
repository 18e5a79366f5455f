"""reports/README.md, the claims over all committed studies, and the sentence of results in the top-level README.md.

`python -m study.index` writes both, and the figure beside them, from the studies' tables; the stage `report` of a
committed study does, too.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from mmtlib.config import ROOT
from mmtlib.evaluation.stats import verdict
from mmtlib.files import write_bytes, write_text
from study.figures.results import over_studies
from study.figures.style import png
from study.tables.claims import claims, efficiency_claims, of_runs, read_efficiency

PUBLIC = ("audioset-20k", "audioset-2m", "epic-kitchens-100", "esc10", "grid", "grid_0db", "grid_minus10db")
PUBLIC += ("kinetics-sounds", "scenes", "ucf101", "urbansound8k", "vggsound")
GENERATED = ("freedoom", "freedoom2")
"""The studies whose reports are committed, of public sets and of the game. Others, quick, smoke and those of one's own
data, are nothing to the claims over all studies."""

POOLED = "pooled"  # the column of the mean over public sets
LEARNT = 1.0  # top-1 (percent) below which a baseline has surely learnt nothing
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"  # the results stand between them in the top-level README

_OPTIONS = dict(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
TEMPLATES = Environment(loader=PackageLoader("study"), **_OPTIONS)


def committed(reports: Path) -> list[str]:
    """The studies that have a committed report, by name."""
    return [name for name in sorted(PUBLIC + GENERATED) if (reports / name / "tables/claims.csv").is_file()]


def measured(reports: Path) -> pd.DataFrame:
    """The claims.csv of all committed studies, one below the other, but for the costs of `make bench`; then the pooled.

    Of a claim in points of top-1, the pooled difference is the mean over the public sets that measured it, all counting
    the same, but for baselines below LEARNT, as `remark` says; its interval takes sets for independent, near to normal.
    """
    parts = [pd.read_csv(reports / study / "tables/claims.csv").assign(study=study) for study in committed(reports)]
    table = of_runs(pd.concat(parts, ignore_index=True))
    pooled = []
    top1 = table["unit"].eq("points of test top-1") & (table["n_seeds"] > 0)
    weak = top1 & (table["theirs_value"] < LEARNT)
    table["remark"] = np.where(weak, f" (baseline below {LEARNT:g} %)", "")
    real = table[top1 & ~weak & table["study"].isin(PUBLIC)]
    # Studies of one set, whose names begin alike, share its clips: together they count as one.
    real = real.assign(half=(real["ci_high"] - real["ci_low"]) / 2, set=real["study"].str.split("_").str[0])
    for (name, above), part in real.groupby(["id", "holds_above"]):
        sets = part.groupby("set")[["measured", "half"]].mean()
        if len(sets) > 1:
            mean, half = sets["measured"].mean(), np.hypot.reduce(sets["half"]) / len(sets)
            row = {"id": name, "study": POOLED, "measured": mean, "ci_low": mean - half, "ci_high": mean + half}
            row["verdict"] = verdict(mean - half - above, mean + half - above)
            pooled.append(row | {"n_studies": len(sets), "n_seeds": part["n_seeds"].min(), "paper": "", "remark": ""})
    return pd.concat([table, pd.DataFrame(pooled)], ignore_index=True) if pooled else table


def ledger(reports: Path) -> pd.DataFrame:
    """A row for each claim with what the paper states; a column for each study: measured [interval], verdict, seeds."""

    def cell(row) -> str:
        form, s = "{:+.2f}" if row.unit == "silhouette" else "{:+.1f}", "s" * (row.n_seeds > 1)
        number, low, high = map(form.format, (row.measured, row.ci_low, row.ci_high))
        interval = f" [{low}, {high}]" if row.ci_low < row.ci_high else ""  # a count has none
        of = f"{row.n_studies:.0f} sets" if row.study == POOLED else f"{row.n_seeds:.0f} seed{s}"
        return f"{number}{interval} {row.verdict}{row.remark}, {of}"

    table = measured(reports)
    table["cell"] = [cell(row) if row.n_seeds else "not run" for row in table.itertuples()]
    wide = table.pivot(index="id", columns="study", values="cell").reindex(
        index=[name for name in claims() if name in set(table["id"])], columns=table["study"].unique()
    )
    wide = wide.fillna({POOLED: ""}).fillna("not asked")
    wide.insert(0, "paper", [claims()[name].stated for name in wide.index])
    wide.insert(0, "claim", [claims()[name].unequal or claims()[name].claim for name in wide.index])
    return wide.rename_axis(columns=None).reset_index(drop=True)


def write_index(root: Path = ROOT) -> None:
    """Write reports/README.md, reports/studies.png and the results in README.md, where that has the lines."""
    reports, readme = root / "reports", root / "README.md"
    studies = committed(reports)
    rows, costs = measured(reports), efficiency_claims(read_efficiency(root))
    unequal = {name: claim.unequal for name, claim in claims().items() if claim.unequal}
    operations = rows[rows["id"].isin(unequal) & (rows["n_seeds"] > 0) & (rows["study"] != POOLED)]
    equal = [study for study, pairs in operations.groupby("study") if not pairs["claim"].isin(unequal.values()).any()]
    several = ", ".join(rows["study"][rows["unit"] == "points of test mAP"].unique())  # labels a clip
    given = {"studies": studies, "costs": costs, "several": f" ({several}: mAP)" if several else ""}
    page = TEMPLATES.get_template("index.md.j2").render(given, table=ledger(reports), equal=equal)
    write_text(reports / "README.md", page)
    write_bytes(reports / "studies.png", png(over_studies(rows)))
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END):
        section = TEMPLATES.get_template("results.md.j2").render(given, claims=rows)
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        write_text(readme, f"{before}\n{section.strip()}\n{after}")


if __name__ == "__main__":
    write_index()
