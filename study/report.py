"""The report of a study: tables, figures and README.md, from what the stages left behind.

Every number and every verdict in the text is computed here, none is typed; the words are in templates/report.md.j2.
"""

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import StringIO
from itertools import takewhile
from math import prod
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from ruamel.yaml import YAML
from sklearn.metrics import confusion_matrix

from mmtlib.config import ROOT, Params, load
from mmtlib.data.dataset import VAL_SHARE
from mmtlib.files import write_bytes, write_text
from mmtlib.folders import Folders
from mmtlib.models import resolved
from mmtlib.training.experiment import made_with, plain
from study.figures import analysis as analysis_figures
from study.figures import results as figures
from study.figures.style import READS, png
from study.index import GENERATED, PUBLIC, TEMPLATES, write_index
from study.tables import analysis, scores, studies
from study.tables.claims import claims_table, of_runs, read_efficiency
from study.tables.clips import Study, load_study
from study.tables.results import GROUPS

POOLED = {"time": "over time", "both": "over time and frequency", "none": "over nothing"}  # by a stage of MAT
VERDICTS = ("holds", "does not hold", "undecided")
_markdown = partial(pd.DataFrame.to_markdown, index=False, disable_numparse=True)
LABEL_TERMS = {"top-1": "mAP", "top1": "map", "Cross-entropy": "Binary cross-entropy"}
LABEL_TERMS |= {"Test accuracy": "Average precision"}
LABEL_TERMS |= {"test clips of the class that are recognised (%)": "average precision of the class on test (%)"}


@dataclass(frozen=True)
class Report:
    """A report before it is written: tables and figures by the name of their file, and the text."""

    tables: dict[str, pd.DataFrame]
    figures: dict[str, Figure]
    text: str


def write_report(folders: Folders, params: Params) -> dict[str, Any]:
    """Write the report of a study; of a committed one, the claims over all studies, too (see study.index).

    Returns the paths `readme`, `tables` and `figures`, the latter two by name. Raises ReportError, naming the stage to
    run, when something that an earlier stage writes is missing.
    """
    report = build_report(folders, params)
    tables = {name: folders.report / f"tables/{name}.csv" for name, table in report.tables.items() if not table.empty}
    for name, path in tables.items():
        write_text(path, report.tables[name].to_csv(index=False, float_format=_number, lineterminator="\n"))
    pictures = {name: folders.report / f"figures/{name}.png" for name in report.figures}
    for path in {*folders.report.glob("tables/*.csv"), *folders.report.glob("figures/*.png")}:
        if path not in (*tables.values(), *pictures.values()):
            path.unlink()  # of a report with other rows
    for name, path in pictures.items():
        write_bytes(path, png(report.figures[name]))
    readme = folders.report / "README.md"
    write_text(readme, report.text)
    if folders.root == ROOT and params.study in PUBLIC + GENERATED:
        write_index(ROOT)
    return {"readme": readme, "tables": tables, "figures": pictures}


def in_terms_of_labels(report: Report) -> Report:
    """The report of clips with several labels: mAP in the place of top-1 in its tables, figures and text."""

    def say(text: Any) -> Any:
        for one, other in LABEL_TERMS.items() if isinstance(text, str) else ():
            text = text.replace(one, other)
        return text

    for text in (text for figure in report.figures.values() for text in figure.findobj(Text)):
        text.set_text(say(text.get_text()))
    tables = {name: table.rename(columns=say).map(say) for name, table in report.tables.items()}
    return Report(tables, report.figures, say(report.text))


def main(file: str) -> None:
    """The command `mmt report`: write the report of a parameter file's study."""
    params = load(file)
    print(write_report(Folders(ROOT, params.study), params)["readme"])


def build_report(folders: Folders, params: Params) -> Report:
    """Compute the tables, figures and text of a study; write nothing. Raises ReportError."""
    study = load_study(folders, params)
    kinds = () if study.features["multilabel"] else ("calibration", "retrieval", "clustering")
    costs, analyses = scores.costs_table(study), {name: getattr(analysis, f"{name}_table")(study) for name in kinds}
    tables = {
        "claims": claims_table(study, costs, analyses.get("clustering", pd.DataFrame()), read_efficiency(folders.root)),
        "results": scores.results_table(study),
        "headline": scores.headline_table(study, costs),
        "ablations": scores.ablations_table(study, costs),
        "per_class": scores.per_class_table(study),
        "coverage": pd.DataFrame([{"split": name} | counts for name, counts in study.features["coverage"].items()]),
        "ceilings": scores.ceilings_table(study),
        "costs": costs,
        "pairs": scores.pairs_table(study),
        **analyses,
        "robustness": studies.robustness_table(study),
        "data_efficiency": studies.data_table(study),
        "search": studies.search_table(study),
    }
    curves = scores.curves_table(study, costs)
    report = Report(tables, report_figures(study, tables, curves), report_text(study, tables, curves))
    return in_terms_of_labels(report) if study.features["multilabel"] else report


def report_figures(study: Study, tables: dict[str, pd.DataFrame], curves: pd.DataFrame) -> dict[str, Figure]:
    """All figures by the name of their file."""
    head, per_class = tables["headline"], tables["per_class"].dropna()
    chance = 100 / prod(map(len, study.features["heads"].values()))  # that all heads are right
    chance = 100 * per_class["n"].mean() / head["n"].max() if study.features["multilabel"] else chance
    tops = study.features.get("ceilings", {}).get("test", {})
    found = {
        "claims": figures.claims(of_runs(tables["claims"])),
        "headline": figures.headline(head[~head["withheld"]], tops, chance),
        "learning_curves": figures.learning_curves(curves),
        "per_class": figures.per_class(per_class),
        "ablations": figures.ablations(tables["ablations"]),
    }
    given = [name for name in ("robustness", "data_efficiency") if not tables[name].empty]
    found |= {name: getattr(analysis_figures, name)(tables[name]) for name in given}
    return found | ({} if study.features["multilabel"] else _figures_of_one_label(study, tables))


def _figures_of_one_label(study: Study, tables: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    main, classes = study.defaults, study.features["classes"]
    audio_peers = [r for r in study.reported if r.group == "baseline" and r.modality == "audio"]
    mapped = [main[name] for name in ("av", "audio") if name in main] + audio_peers[:1]
    matrices = {}
    for name, result in main.items():
        clips = study.on_test(result)  # of all seeds
        matrix = confusion_matrix(clips["label"], clips["guess"], labels=range(len(classes)))
        matrices[f"{result.label}, {READS[name]}"] = matrix.astype(float)
    maps = {f"{r.label}, {READS[r.modality]}": scores.tsne_points(study, r) for r in mapped}
    clips = [study.on_test(result) for result in study.headliners]
    bins, surest = [*map(analysis.reliability, clips)], [*map(analysis.selective, clips)]
    return {
        "confusion": figures.confusion(matrices, classes),
        "tsne": figures.tsne(maps, classes),
        "calibration": analysis_figures.calibration(tables["calibration"], bins, surest),
    }


def report_text(study: Study, tables: dict[str, pd.DataFrame], curves: pd.DataFrame) -> str:
    """README.md of the report: templates/report.md.j2 with what its sentences need beside the tables."""
    TEMPLATES.filters |= {"f": format, "listed": lambda names: ", ".join(names) or "none"}
    TEMPLATES.filters |= {"table": _aligned, "crossed": _crossed, "markdown": _markdown}
    TEMPLATES.globals |= {"READS": READS, "GROUPS": GROUPS, "VERDICTS": VERDICTS}
    TEMPLATES.globals |= {"BINS": analysis.BINS, "NEAREST": analysis.NEAREST, "VAL_SHARE": VAL_SHARE}
    noisy = tables["robustness"].query("unit == 'dB'")
    worst = noisy[noisy["level"] == noisy["level"].min()].sort_values("loss", ascending=False, kind="stable")
    known = tables["per_class"].dropna().set_index("class")
    search = tables["search"].groupby("model", sort=False)
    # the models of all rows read the same clips, so one line of chance is enough
    retrieval = tables.get("retrieval", pd.DataFrame(columns=["query", "wanted", *analysis.CHANCES]))
    chance = retrieval.drop_duplicates(["query", "wanted"]).assign(row="chance", objective="")
    chance[analysis.RECALLS] = chance[analysis.CHANCES].to_numpy()
    ended = curves.groupby(["run", "seed", "fold"], dropna=False, sort=False).tail(1).groupby("run", sort=False)["kept"]
    shown = StringIO()
    YAML().dump(study.params.model_dump(mode="json", exclude_unset=True), shown)
    mat = study.params.pretrain_mat
    text = TEMPLATES.get_template("report.md.j2").render(
        study=study,
        params=study.params,
        tables=tables,
        asked=of_runs(tables["claims"]),
        reads={result.label: READS[result.modality] for result in study.reported},
        about=about(study.params.study),
        pooling=[POOLED[name] for name in dict.fromkeys(resolved(mat.model, mat.overrides).get("pooling", []))],
        started=[r.label for r in study.headliners if r.trained.init == "pretrained"],
        best=tables["headline"].groupby("modality")["top1"].max(),
        at_an_edge=[name for name, part in search if {*part["lr"].agg(["min", "max"])} & {*part["lr"][part["best"]]}],
        worst=None if worst.empty else worst.iloc[0],
        gap=known["audio"] - known["video"] if "video" in known else None,
        gained=(known["av"] > known[["audio", "video"]].max(axis=1)).sum() if "av" in known else 0,
        unfinished=[f"{name} in {best.sum()} of {len(best)} runs" for name, best in ended if best.any()],
        few=[result.name for result in study.reported if len(result.predictions) < 3],
        changed=[r.name for r in study.reported if plain(r.trained) != plain(study.params.runs[r.name])],
        parameters=shown.getvalue().strip(),
        versions=pd.DataFrame(about_versions().items(), columns=["what", "version"]),
        retrieval=pd.concat([retrieval, chance]),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def about(study: str) -> str:
    """What a study is, why, and where its data come from: the comment that its file in params/ begins with."""
    path = ROOT / f"params/{study}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


def _crossed(table: pd.DataFrame, index: list[str], title: Callable[[Any], str], cell: Callable[[Any], str]) -> str:
    """A Markdown table with a row for each `index`; each row of `table` gives a cell and the title of its column."""
    rows: dict[tuple, dict[str, str]] = {}
    for row in table.itertuples():
        about = {name: getattr(row, name) for name in index}
        rows.setdefault(tuple(about.values()), about)[title(row)] = cell(row)
    return _markdown(pd.DataFrame(rows.values()).fillna(""))


def _aligned(text: str) -> str:
    """Lines of cells with | between them, the titles first, as a Markdown table."""
    titles, *rows = ([cell.strip() for cell in line.split("|")] for line in text.strip().splitlines())
    return _markdown(pd.DataFrame(rows, columns=titles)) + "\n"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 0.01 or not value else f"{value:.4g}"  # a learning rate is small


def about_versions() -> dict[str, str]:
    """What made the report: Python, the packages that scores may depend on, and the commit of the code."""
    packages = ("torch", "torchaudio", "torchvision", "transformers", "numpy")
    found = {name: version(name).split("+")[0] for name in packages}  # without the build for one platform
    return {"python": platform.python_version()} | found | {"commit": made_with()["commit"]}
