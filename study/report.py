"""The report: reports/tables, reports/figures and reports/README.md, from what the stages left behind.

Every number and every verdict in the text is computed here, none is typed.
"""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from ruamel.yaml import YAML

from mmtlib.config import ROOT, Params
from mmtlib.files import write_bytes, write_text
from mmtlib.training.experiment import made_with
from study.figures import analysis as analysis_figures
from study.figures import results as figures
from study.figures.results import READS
from study.tables import analysis
from study.tables.claims import MARGIN, claims_table
from study.tables.ledger import read_efficiency
from study.tables.results import (
    GROUPS,
    STAGES,
    ReportError,
    Result,
    ablations_table,
    ceilings_table,
    confusion_matrix,
    costs_table,
    coverage_table,
    curves_table,
    defaults,
    headline_table,
    headliners,
    load_results,
    per_class_table,
    read_features,
    results_table,
    tsne_points,
)
from study.tables.studies import data_table, robustness_table, search_table

__all__ = ["Report", "ReportError", "build_report", "update_readme", "write_report"]

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""The lines of the top-level README.md between which the results stand."""


ROLES = {
    "MMT beats the better single modality": "the better single modality, ",
    "MAT beats AST": "its baseline ",
    "MMT beats MBT": "its baseline ",
}
"""The claims that the answer sums up, and what ours is compared with."""


UNITS = {"gmacs": "GMACs", "params_m": "M parameters", "peak_memory_gib": "GiB in training"}
"""Columns of efficiency.csv in words."""


@dataclass(frozen=True)
class Report:
    """A report before it is written: tables and figures by the name of their file, and the text."""

    tables: dict[str, pd.DataFrame]
    figures: dict[str, Figure]
    text: str  # reports/README.md
    section: str  # of the top-level README.md


def write_report(workspace: Path, params: Params) -> dict[str, Any]:
    """Write the report below `workspace`; in the repository itself, the top-level README's results, too.

    Returns `readme`, `tables` and `figures` (paths, the latter two by name) and `test_top1`: percent by
    "model/modality" for the rows of the headline table. Raises ReportError, naming the stage to run, when
    something that an earlier stage writes is missing.
    """
    workspace = Path(workspace).resolve()
    report = build_report(workspace, params)
    tables = {name: workspace / f"reports/tables/{name}.csv" for name in report.tables}
    for name, path in tables.items():
        write_text(path, report.tables[name].to_csv(index=False, float_format=_number, lineterminator="\n"))
    pictures = {name: workspace / f"reports/figures/{name}.png" for name in report.figures}
    for name, path in pictures.items():
        write_bytes(path, figures.png(report.figures[name]))
    readme = workspace / "reports/README.md"
    write_text(readme, report.text)
    if workspace == ROOT:
        print(update_readme(ROOT / "README.md", report.section))
    top1 = {f"{row.model}/{row.modality}": round(row.top1, 2) for row in report.tables["headline"].itertuples()}
    return {"readme": readme, "tables": tables, "figures": pictures, "test_top1": top1}


def build_report(workspace: Path, params: Params) -> Report:
    """Compute the tables, figures and text of a workspace; write nothing. Raises ReportError."""
    features = read_features(workspace)
    loaded = load_results(workspace, params)
    results = [result for result in loaded if result.group in (None, *GROUPS)]  # other groups have their own pages
    costs, clustering = costs_table(results, features), analysis.clustering_table(results, params)
    tables = {
        "claims": claims_table(results, costs, clustering, read_efficiency(workspace), params),
        "results": results_table(loaded, _dataset(features)),
        "headline": headline_table(results, costs, params),
        "ablations": ablations_table(results, costs, params),
        "per_class": per_class_table(results, features["classes"]),
        "coverage": coverage_table(features),
        "ceilings": ceilings_table(workspace),
        "costs": costs,
        "calibration": analysis.calibration_table(results),
        "retrieval": analysis.retrieval_table(results),
        "clustering": clustering,
        "robustness": robustness_table(loaded),
        "data_efficiency": data_table(loaded),
        "search": search_table(loaded),
    }
    answer = _answer(results, features, tables, params)
    return Report(
        tables,
        report_figures(results, features, tables),
        _text(loaded, features, tables, params, answer),
        _section(tables, params, answer),
    )


def report_figures(
    results: list[Result], features: dict[str, Any], tables: dict[str, pd.DataFrame]
) -> dict[str, Figure]:
    """All figures by the name of their file."""
    main, classes = defaults(results), features["classes"]
    titles = {name: f"{result.label}, {READS[name]}" for name, result in main.items()}
    audio_peers = [r for r in results if r.group == "baseline" and r.modality == "audio"]
    mapped = [main["av"], main["audio"], *audio_peers[:1]]
    points = {f"{r.label}, {READS[r.modality]}": tsne_points(r, r.modality, classes) for r in mapped}
    head = tables["headline"]
    clips = [analysis.certainties(result) for result in headliners(results)]
    return {
        "claims": figures.claims(tables["claims"]),
        "headline": figures.headline(head[~head["withheld"]], _test_ceilings(tables["ceilings"]), 100 / len(classes)),
        "learning_curves": figures.learning_curves(curves_table(results)),
        "confusion": figures.confusion(
            {titles[name]: confusion_matrix(result, name, classes) for name, result in main.items()}, classes
        ),
        "per_class": figures.per_class(tables["per_class"].dropna()),
        "tsne": figures.tsne(points, classes),
        "ablations": figures.ablations(tables["ablations"]),
        "calibration": analysis_figures.calibration(
            tables["calibration"],
            [analysis.reliability(table) for table in clips],
            [analysis.selective(table) for table in clips],
        ),
        "robustness": analysis_figures.robustness(tables["robustness"]),
        "data_efficiency": analysis_figures.data_efficiency(tables["data_efficiency"]),
    }


def update_readme(path: Path, section: str) -> str:
    """Put `section` between the markers of the README at `path`; returns a line that says what was done."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        return f"{path.name} is left as it is: it has no lines {BEGIN} and {END}, once each and in this order."
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    write_text(path, f"{before}\n{section.strip()}\n{after}")
    return f"{path.name}: results updated."


def _text(
    results: list[Result], features: dict[str, Any], tables: dict[str, pd.DataFrame], params: Params, answer: str
) -> str:
    changed = _changed(results, params)
    parts = [
        f"# Multiscale audio-video Transformers on {_dataset(features)}",
        "This file is written by the stage `report`; do not edit it.",
        answer,
        "## Data",
        f"{len(features['classes'])} classes. How many clips each split lists and how many could be used; "
        "*silent* and *blind* ones lack sound or picture, and count where the other is enough.",
        _markdown(tables["coverage"]),
        _ceilings(tables),
        "## Method",
        _method(features, params),
        "## Results",
        _headline(tables["headline"]),
        _picture("headline", _headline_caption(tables)),
        _protocol(params, tables),
        *_search(tables["search"]),
        *_claims(tables["claims"], params),
        "## Ablations",
        "Each row is compared with the default that it changes, by clip and seed on the test split, over the seeds "
        "that both have: the default's top-1 stands beside its name. *Difference* is row minus default in points, with "
        f"its {_level(params)} interval. *The default is better* holds if all of the interval is below 0, does not "
        "hold if it is above, otherwise undecided. Of so many rows, chance alone decides some whose interval ends near "
        "0.",
        *_ablation_groups(tables["ablations"]),
        _picture("ablations", "Left of the line the default is better; an interval that reaches it decides nothing."),
        *_robustness(tables["robustness"]),
        *_data_efficiency(tables["data_efficiency"]),
        "## How they learn",
        _picture(
            "learning_curves",
            "Solid: ours, dashed: baselines. The dot is the epoch whose weights are kept, chosen on "
            "validation. Where training still falls while validation stands still, the model overfits."
            + " MMT starts from trained encoders."
            * (params.train_mmt.init == "pretrained"),
        ),
        "## Which classes",
        _picture("per_class", _per_class_caption(tables["per_class"])),
        _picture(
            "confusion",
            "Rows are true classes, in percent of the row. A dark cell off the diagonal is a pair of classes "
            "that the model confuses; compare the panels to see which pairs the other modality settles.",
        ),
        _picture(
            "tsne",
            "Each point is a test clip, each colour and marker a class (t-SNE, first seed). Look for classes "
            "that form a group in one panel and not in another; distances between groups mean little.",
        ),
        "## Beyond accuracy",
        *_calibration(tables["calibration"]),
        *_retrieval(tables["retrieval"]),
        *_clustering(tables["clustering"], params),
        "## Limits",
        _limits(results, features, tables["ablations"]),
        "## Tables",
        "\n".join(f"- [{name}.csv](tables/{name}.csv)" for name in tables),
        "## Parameters",
        f"```yaml\n{params_yaml(params).strip()}\n```",
        *([f"Trained with other values than these: {', '.join(changed)}."] if changed else []),
        "## Versions",
        _markdown(pd.DataFrame(about_versions().items(), columns=["what", "version"])),
        f"Data set: {features['name']}, fingerprint of the features `{features['fingerprint']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _section(tables: dict[str, pd.DataFrame], params: Params, answer: str) -> str:
    parts = [
        answer,
        _headline(tables["headline"]),
        _picture("headline", _headline_caption(tables), folder="reports/figures"),
        f"{_seeds(params)} {_beside_the_gaps(tables['ablations'])} Everything else is in "
        "[reports/README.md](reports/README.md).",
    ]
    return "\n\n".join(parts)


def _answer(results: list[Result], features: dict[str, Any], tables: dict[str, pd.DataFrame], params: Params) -> str:
    """The question and what the numbers say, with a word for each comparison that its interval decides."""
    listed = features["coverage"]["test"]["listed"]
    classes = " x ".join(str(len(names)) for names in features["heads"].values())
    reads = {result.label: READS[result.modality] for result in results}
    word = {"holds": "beats", "does not hold": "does not beat", "undecided": "cannot be told apart from"}
    claims = tables["claims"]
    claims = claims.set_index(claims["claim"].str.removesuffix(" at equal operations"))
    sentences = [
        f"{row.ours} ({reads[row.ours]}, {row.ours_value:.1f} %) {word[row.verdict]} {role}"
        f"{row.theirs} ({reads[row.theirs]}, {row.theirs_value:.1f} %): {row.measured:+.1f} points "
        f"[{row.ci_low:+.1f}, {row.ci_high:+.1f}]."
        for row, role in ((claims.loc[claim], role) for claim, role in ROLES.items())
        if row.n_seeds
    ]
    return (
        "**Do sound and picture together classify better than the better single modality, and do multiscale "
        f"Transformers classify better than single-scale ones?** On {tables['headline']['n'].max()} of the {listed} "
        f"test clips that {_dataset(features)} lists, in {classes} classes, by top-1 (difference with its "
        f"{_level(params)} interval): {' '.join(sentences)}"
    )


def _dataset(features: dict[str, Any]) -> str:
    """The data set's name, and that of its list of classes where it has several."""
    name, classes = features["name"], features["class_list"]
    return name if classes == name else f"{name} ({classes})"


def _claims(table: pd.DataFrame, params: Params) -> list[str]:
    """What is left of the paper's claims."""
    words = ("holds", "does not hold", "undecided")
    counts = [f"{name} for {(table['verdict'] == name).sum()}" for name in words]
    missing = (table["n_seeds"] == 0).sum()
    few = table[table["n_seeds"].between(1, 2) & (table["ci_low"] < table["ci_high"])]["claim"]
    rows = []
    for row in table.itertuples():
        digits, interval = 3 if row.unit == "silhouette" else 1, ""
        if row.ci_low < row.ci_high:
            interval = f" [{row.ci_low:+.{digits}f}, {row.ci_high:+.{digits}f}]"
        sides = f"{row.ours} {row.ours_value:.{digits}f}, {row.theirs} {row.theirs_value:.{digits}f}"
        rows.append(
            {
                "claim": f"**{row.claim}**" if row.verdict == "holds" else row.claim,
                "paper": row.paper,
                "here": f"{row.measured:+.{digits}f}{interval}" if row.n_seeds else "",
                "unit": row.unit,
                "verdict": row.verdict if row.n_seeds else "undecided: not run",
                "compared": f"{sides} ({UNITS.get(row.measure, row.measure)})" if row.n_seeds else "",
                "seeds": row.n_seeds if row.unit != "% less" else "",
            }
        )
    return [
        "## Claims",
        f"The paper's claims, one by one. Of {len(table)}: "
        f"{', '.join(counts)}{f' ({missing} of them without the runs that would test it)' if missing else ''}. A claim "
        f"holds if all of its interval lies above 0 (*no worse*: above -{MARGIN:g}, our margin), and does not hold if "
        f"all of it lies below. {_intervals(params)} Costs are counted or, by `make bench` (`reports/efficiency.md`), "
        "measured once, and have none. From fewer than three seeds, so that another may say otherwise: "
        f"{', '.join(few) or 'none'}.",
        _markdown(pd.DataFrame(rows)),
        _picture(
            "claims",
            "What was found, with its interval; grey: what the paper states for Kinetics-Sounds (KS), "
            "EPIC-KITCHENS-100 and VGGSound (VGG), or of its costs, where its two versions differ. Unless data and "
            "models are the same, compare the sign, not the size.",
        ),
    ]


def _intervals(params: Params) -> str:
    """What the intervals mean."""
    of = f"Brackets are {_level(params)} bootstrap intervals ({params.report.bootstrap} resamples"
    if len(params.seeds) == 1:
        return (
            f"{of} of the test clips, the same for both sides): what other clips of the kind might change. With one "
            "seed, what another one might change is not in them."
        )
    return (
        f"{of} of test clips and seeds, the same for both sides): what other clips and seeds might change. A few seeds "
        "tell little of how much seeds differ: where that is more than a point or two, an interval is too narrow."
    )


def _headline(table: pd.DataFrame) -> str:
    of_heads = [name for name in table if name.endswith("_top1")]
    rows = [
        {
            "model": f"**{row.model}**" if row.ours else row.model,
            "reads": READS[row.modality] + (" (other withheld)" if row.withheld else ""),
            "objective": row.objective,
            "test top-1 (%)": f"{row.top1:.1f} [{row.low:.1f}, {row.high:.1f}]",
            "std over seeds": f"{row.std:.1f}",
            "top-5 (%)": f"{row.top5:.1f}",
            **{name.replace("_top1", " top-1 (%)"): f"{getattr(row, name):.1f}" for name in of_heads},
            "params (M)": f"{row.params_m:.2f}",
            "MMACs": "" if row.withheld else f"{row.mmacs:.0f}",
        }
        for row in table.itertuples()
    ]
    return _markdown(pd.DataFrame(rows).drop(columns=["std over seeds"] if table["std"].isna().all() else []))


def _headline_caption(tables: dict[str, pd.DataFrame]) -> str:
    tops = _test_ceilings(tables["ceilings"])
    lines = " Thin lines are the best that the data allows with one modality alone." if tops else ""
    return (
        "Test top-1. Bars of one colour read the same; error bars are bootstrap intervals, the "
        f"dotted line is chance.{lines}"
    )


def _method(features: dict[str, Any], params: Params) -> str:
    """The model of both as a diagram, with the sizes of these parameters."""
    run, shape = params.train_mmt, {key: features[key]["shape"][1:] for key in ("log_mel", "frames")}
    sound, picture = (" x ".join(map(str, shape[key])) for key in ("log_mel", "frames"))
    weights = ", ".join(f"{name.upper()} {getattr(run.objective, name):g}" for name in ("avc", "imc"))
    fusion = run.overrides.get("fusion", "bottleneck")
    text = (
        "Each encoder has stages: at each, the tokens are fewer and wider, since attention pools its queries over "
        "time, then over frequency, too (sound), or over the picture (MViTv2). A few bottleneck tokens are all that "
        "the two streams see of each other. Cross-entropy trains the average of the streams' logits; the contrastive "
        "losses draw the embeddings of a class together, across the modalities (AVC) and within each (IMC)."
    )
    return f"""{text}

```mermaid
flowchart LR
  sound["log-mel, time x mel: {sound}"] --> mat["{params.pretrain_mat.model}: multiscale, time x mel"]
  picture["RGB frames: {picture}"] --> mvit["{params.pretrain_mvit.model}: multiscale, time x height x width"]
  mat --> fusion["{run.model}: {fusion} fusion"]
  mvit --> fusion
  fusion --> logits["logits of {len(features["classes"])} classes: cross-entropy"]
  mat --> embeddings["embeddings: {weights}, temperature {run.objective.temperature:g}"]
  mvit --> embeddings
```"""


def _protocol(params: Params, tables: dict[str, pd.DataFrame]) -> str:
    head, tuning = tables["headline"], ""
    if tables["search"].empty:
        tuning = (
            " These parameters have no search of learning rates: a claim against a baseline is measured at the rates "
            "that they give."
        )
    clips = " to ".join(str(count) for count in sorted({head["n"].min(), head["n"].max()}))
    return (
        f"Ours are in bold. {_seeds(params)} There are {clips} test clips. {_intervals(params)} "
        "The weights kept are those of the epoch with the highest validation top-1 (of equals, the lowest validation "
        "loss); the test split is read once, after that. All runs share the recipe `training`; their epochs and "
        f"learning rates are in the parameters of the report.{tuning} Rows with the other modality withheld come from "
        "the same weights as the row of both. MMACs are million multiply-accumulates for a clip, with all that the "
        "model reads."
    )


def _search(table: pd.DataFrame) -> list[str]:
    """Which learning rates were tried."""
    if table.empty:
        return []
    rows = []
    for model, part in table.groupby("model", sort=False):
        cells = {f"{row.lr:g}": f"{row.val_top1:.1f}" + " (taken)" * row.taken for row in part.itertuples()}
        rows.append({"model": model} | cells)
    shown = pd.DataFrame(rows).set_index("model")
    shown = shown[sorted(shown, key=float)].fillna("").reset_index()
    other = table.query("taken and not best")["model"].tolist()
    edge = [model for model, part in table.groupby("model", sort=False) if part["best"].iloc[[0, -1]].any()]
    return [
        "### How the learning rates were chosen",
        f"Validation top-1 (%) by learning rate, {table['n_seeds'].max()} seed(s). Every model had the same number of "
        f"tries, and the test split played no part. Not the best of its tries: {', '.join(other) or 'none'}. At an "
        f"edge of what was tried, where another rate may be better still: {', '.join(edge) or 'none'}.",
        _markdown(shown),
    ]


def _robustness(table: pd.DataFrame) -> list[str]:
    """What corrupted clips cost."""
    if table.empty:
        return []
    whole = table[table["level"].isna()]
    cells = [
        f"{row.top1:.1f}" + (f" ({row.loss:.1f})" if row.corruption != "none" else "") for row in whole.itertuples()
    ]
    shown = whole.assign(cell=cells).pivot(index="model", columns="corruption", values="cell")
    shown = shown.reindex(index=whole["model"].unique(), columns=whole["corruption"].unique())
    noisy = table[table["unit"] == "dB"]
    worst = noisy[noisy["level"] == noisy["level"].min()].sort_values("loss", ascending=False, kind="stable").iloc[0]
    return [
        "## Robustness",
        "Test clips made harder, the same for every model: one modality withheld, white noise in one (in dB of the "
        "clip's own power), the picture frozen at its middle frame, the sound late (its end returns at the beginning). "
        "None was trained for it, but for rows of the group `dropout`, which lost one modality of some training clips. "
        "Test top-1 (%), in brackets the points below the clean clips:",
        _markdown(shown.reset_index()),
        _picture(
            "robustness",
            "Test top-1 against noise and delay, means over the seeds; pale: baselines, grey: variants of ours. Of "
            f"the loudest noises, {worst['corruption']} costs most: {worst['model']} {worst['loss']:.1f} points.",
        ),
    ]


def _data_efficiency(table: pd.DataFrame) -> list[str]:
    """What fewer training clips cost."""
    if table.empty:
        return []
    shown = table.assign(share=(100 * table["share"]).map("{:g} %".format), top1=table["top1"].map("{:.1f}".format))
    shown = shown.pivot(index="model", columns="share", values="top1")[shown["share"].unique()].reset_index()
    return [
        "## Fewer training clips",
        f"Test top-1 (%) with a share of each class's training clips, {table['n_seeds'].max()} seed(s). An epoch "
        "passes 1/sqrt(share) times, rounded, over what is left, so that fewer clips are fewer steps, too; the "
        "encoders of our model are trained on no more, either.",
        _markdown(shown),
        _picture(
            "data_efficiency",
            "A line tells of fewer clips and of fewer steps together. Solid: ours, dashed and pale: baselines.",
        ),
    ]


def _seeds(params: Params) -> str:
    seeds = params.seeds
    if len(seeds) == 1:
        return f"One seed ({seeds[0]})."
    return f"{len(seeds)} seeds ({', '.join(map(str, seeds))}); scores are means over them."


def _level(params: Params) -> str:
    return f"{100 * params.report.confidence:g} %"


def _ablation_groups(table: pd.DataFrame) -> list[str]:
    parts = []
    for group, part in table.groupby("group", sort=False):
        rows = [
            {
                "row": row.row,
                "model": row.model,
                "default": f"{row.default} {row.default_top1:.1f}",
                "reads": READS[row.modality],
                "objective": row.objective,
                "val top-1 (%)": f"{row.val_top1:.1f}",
                "test top-1 (%)": f"{row.top1:.1f}" + (f" ± {row.std:.1f}" if row.n_seeds > 1 else ""),
                "difference": f"{row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}]",
                "the default is better": row.verdict,
                "params (M)": f"{row.params_m:.2f}",
                "MMACs": f"{row.mmacs:.0f}",
                "seeds": row.n_seeds,
            }
            for row in part.itertuples()
        ]
        against = " / ".join(f"`{name}`" for name in part["default"].unique())
        counts = part["verdict"].value_counts().reindex(["holds", "does not hold", "undecided"]).dropna()
        summary = ", ".join(f"{name} for {count:.0f} of {len(part)}" for name, count in counts.items())
        parts += [
            f"### {group.capitalize()}",
            f"{GROUPS[group]} Default: {against}. {summary.capitalize()}.",
            _markdown(pd.DataFrame(rows)),
        ]
    return parts


def _ceilings(tables: dict[str, pd.DataFrame]) -> str:
    table = tables["ceilings"]
    if table.empty:
        return "The data set states no ceilings."
    wide = table.pivot(index="split", columns="modality", values="ceiling").reindex(table["split"].unique())
    wide = wide[[name for name in READS if name in wide]].map("{:.1f}".format)
    wide.columns = [f"{READS[name]} alone (%)" for name in wide.columns]
    tops = _test_ceilings(table)
    best = tables["headline"].groupby("modality")["top1"].max()
    gaps = [
        f"{READS[name]} alone is {tops[name] - best[name]:.1f} points below ({best[name]:.1f} of {tops[name]:.1f})"
        for name in READS
        if name in tops
    ]
    room = f" On test, the best model with {'; with '.join(gaps)}." if gaps else ""
    return (
        "The best top-1 that one modality alone can reach: some events are not heard, some not seen, and of "
        f"those only a guess is left.{room}\n\n{_markdown(wide.reset_index())}"
    )


def _test_ceilings(table: pd.DataFrame) -> dict[str, float]:
    return table[table["split"] == "test"].set_index("modality")["ceiling"].to_dict()


def _per_class_caption(table: pd.DataFrame) -> str:
    known = table.dropna()
    gap = (known["audio"] - known["video"]).to_numpy()
    heard, seen = known["class"].iloc[gap.argmax()], known["class"].iloc[gap.argmin()]
    gained = int((known["av"] > known[["audio", "video"]].max(axis=1)).sum())
    return (
        f"Test accuracy by class. Against picture, sound does best for `{heard}` ({gap.max():+.0f} points) "
        f"and worst for `{seen}` ({gap.min():+.0f}); both together are above the better one in {gained} of "
        f"{len(known)} classes."
    )


def _calibration(table: pd.DataFrame) -> list[str]:
    """Is a model right as often as it is sure?"""
    sure = table[table["confidence"] > table["top1"]]
    best = table.loc[table["ece"].idxmin()]
    shown = {"top1": "top-1 (%)", "confidence": "confidence (%)", "ece": "ECE (%)", "nll": "NLL (nats)"}
    return [
        "### Is it right as often as it is sure?",
        "*Confidence* is the mean of the top probability. ECE is how far it lies from the share that is right, in "
        f"{analysis.BINS} equal bins; with NLL and the Brier score (0 to 2), lower is better. Overconfident on "
        f"average: {', '.join(sure['model']) or 'none'}. {best['model']} has the lowest ECE, {best['ece']:.1f} %.",
        _markdown(_measures(table, shown | {"brier": "Brier"})),
        _picture(
            "calibration",
            "Above: on the dotted line a model is right as often as it is sure, below the line it is too sure; the "
            "larger the dot, the more clips. Below: top-1 if it answers only for the clips that it is surest of. "
            "Solid: ours, dashed and pale: baselines.",
        ),
    ]


def _retrieval(table: pd.DataFrame) -> list[str]:
    """Does sound find its picture?"""

    kinds = {"audio": "picture from sound", "video": "sound from picture"}
    # the models of all rows read the same clips, so one line of chance is enough
    of_chance = table.drop_duplicates(["query", "wanted"]).assign(row="chance", objective="")
    of_chance[analysis.RECALLS] = of_chance[analysis.CHANCES].to_numpy()
    rows = []
    for (name, objective), part in pd.concat([table, of_chance]).groupby(["row", "objective"], sort=False):
        cells = {
            f"{kinds[line['query']]}, {line['wanted']}": " / ".join(
                f"{line[recall]:.1f}" for recall in analysis.RECALLS
            )
            for line in part.to_dict("records")
        }
        rows.append({"row": name, "objective": objective} | cells)
    nearest = ", ".join(map(str, analysis.NEAREST))
    return [
        "### Does sound find its picture?",
        f"Each test clip with both modalities looks for its other half among {table['n'].max()}, by the cosine of the "
        f"two embeddings: percent with the own clip, or one of its class, among the nearest {nearest}. The embeddings "
        "come from heads before the fusion that only the contrastive losses train: without AVC nothing draws the two "
        "modalities together, and such a row is expected to be no better than chance.",
        _markdown(pd.DataFrame(rows)),
    ]


def _clustering(table: pd.DataFrame, params: Params) -> list[str]:
    """Do the features tell classes apart?"""
    word = {"holds": "separates its classes better than", "does not hold": "separates its classes worse than"}
    judged = [
        f"{row.default} {word.get(row.verdict, 'cannot be told apart from')} {row.model}: silhouette "
        f"{-row.difference:+.3f} [{-row.high:+.3f}, {-row.low:+.3f}] ({_level(params)} interval)."
        for row in table.dropna(subset="default").itertuples()
    ]
    return [
        "### Do the features tell classes apart?",
        "k-means finds as many clusters as there are classes; NMI and ARI say how well they agree with the classes (1: "
        "the same; ARI 0: by chance). The silhouette says how much nearer a clip lies to its class than to the next "
        "(-1 to 1, cosine). Models of one modality are read at the input of their classifier, those of both at the "
        f"heads of the contrastive losses, before the fusion: compare rows of one objective only. {' '.join(judged)}",
        _markdown(_measures(table, {"nmi": "NMI", "ari": "ARI", "silhouette": "silhouette"}, digits=3)),
    ]


def _limits(results: list[Result], features: dict[str, Any], ablations: pd.DataFrame) -> str:
    """What the figures do not say."""
    curves = curves_table(results)
    last = curves["epoch"] == curves.groupby(["run", "seed"])["epoch"].transform("max")
    unfinished = curves[last & curves["kept"]]["run"].unique()
    few = [r.name for r in results if r.group in (None, *GROUPS) and len(r.predictions) < 3]
    lines = [
        f"One data set, {_dataset(features)}, and models of these sizes: what holds here need not hold on other data "
        "or at other sizes, nor the other way round.",
        "Our model of both starts from encoders that were trained apart, a baseline of both from scratch: the recipe, "
        "too, is behind what lies between them."
        if defaults(results)["av"].trained.init == "pretrained"
        else "",
        "For these, of ours and the baselines, the last epoch was the best on validation with some seed, so that more "
        f"epochs might raise them: {', '.join(unfinished) or 'none'}.",
        f"With fewer than three seeds, little is known of what another would change: {', '.join(few) or 'none'}.",
        _beside_the_gaps(ablations),
    ]
    return "\n".join(f"- {line}" for line in lines if line)


def _beside_the_gaps(table: pd.DataFrame) -> str:
    """What else bears on the gaps to the baselines: as many parameters, longer training, another start."""
    rows = table[table["group"].isin(["parameters", "longer", "init"])].itertuples()
    told = [f"{r.row} {r.top1:.1f} % ({r.default} {r.default_top1:.1f} %, seeds: {r.n_seeds})" for r in rows]
    return f"Read the gaps to the baselines beside the rows {', '.join(told)}." if told else ""


def _measures(table: pd.DataFrame, shown: dict[str, str], digits: int = 2) -> pd.DataFrame:
    """A row a model, ours in bold; the columns `shown` by their titles, with the spread over several seeds."""
    rows = []
    for row in table.to_dict("records"):
        name = f"**{row['model']}**" if row["ours"] else row["model"]
        cells = {
            title: f"{row[key]:.{digits}f}" + (f" ± {row[f'{key}_std']:.{digits}f}" if row["n_seeds"] > 1 else "")
            for key, title in shown.items()
        }
        rows.append({"model": name, "reads": READS[row["modality"]], "objective": row["objective"]} | cells)
    return pd.DataFrame(rows)


def _picture(name: str, caption: str, folder: str = "figures") -> str:
    return f"![{name.replace('_', ' ')}]({folder}/{name}.png)\n\n*{caption}*"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 0.01 or not value else f"{value:.4g}"  # a learning rate is small


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


def _changed(results: list[Result], params: Params) -> list[str]:
    """Runs whose weights were trained with other settings than `params` has."""
    wanted = {stage: getattr(params, stage) for stage in STAGES.values()} | params.ablations
    settings = {name: run.model_dump(mode="json", exclude={"group", "seeds"}) for name, run in wanted.items()}
    return [result.name for result in results if result.trained.model_dump(mode="json") != settings[result.name]]


def params_yaml(params: Params) -> str:
    """The parameters as YAML, without those that params.yaml left out."""
    stream = StringIO()
    YAML().dump(params.model_dump(mode="json", exclude_unset=True), stream)
    return stream.getvalue()


def about_versions() -> dict[str, str]:
    """What made the report: Python, the packages that scores may depend on, and the commit of the code."""
    packages = ("torch", "torchaudio", "torchvision", "transformers", "numpy")
    found = {name: version(name).split("+")[0] for name in packages}  # without the build for one platform
    return {"python": platform.python_version()} | found | {"commit": made_with()["commit"]}
