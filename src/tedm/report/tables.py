"""Tables of methods by data sets and training sizes, as CSV, Markdown and LaTeX, from scores."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from tedm import measures, statistics
from tedm.errors import TedmError
from tedm.files import whole, write_text

ABSENT = "–"
NARROW = 4  # columns; with fewer, a heading needs two lines
ROWS_OF_A_PAGE = 50  # of a LaTeX table in footnotesize, which an A4 page holds beside a long caption
CELLS = (
    *("dataset", "method", "n_train", "mean", "std", "bold", "p_value"),
    *("subjects", "seeds", "metric", "data"),
)
TESTS = ("dataset", "n_train", "metric", *statistics.TESTS, "data")


@dataclass(frozen=True)
class Table:
    """One metric of several methods on several data sets; `table` makes it."""

    metric: str
    methods: tuple[str, ...]  # rows within a data set, in this order
    datasets: Mapping[str, str]  # name: label, in this order
    sizes: tuple[int, ...]  # columns: training sizes
    synthetic: frozenset[str]  # names of data sets that are drawn, not measured
    level: float  # of the test behind bold
    classes: int  # of the data set that has most
    note: str  # last words of the caption
    cells: pd.DataFrame  # columns CELLS: percent or mm or px, unrounded; cells without scores are left out
    tests: pd.DataFrame  # columns TESTS: every test behind bold

    def cell(self, dataset: str, method: str, n_train: int) -> tuple[str, bool]:
        """Text of a cell, such as "87.3 ± 2.1" or "–", and whether it is bold."""
        return self._texts.get((dataset, method, n_train), (ABSENT, False))

    def subjects(self, dataset: str) -> int:
        """Subjects that the cells of a data set are means over; 0 without scores."""
        return max(
            (int(count) for count in self.cells.loc[self.cells["dataset"] == dataset, "subjects"]),
            default=0,
        )

    def too_few(self, dataset: str) -> bool:
        """Whether the test could not tell any two methods apart, even if all subjects agreed."""
        return too_few(self.tests[self.tests["dataset"] == dataset], self.level)

    def data(self, dataset: str) -> str:
        """What a data set is: "synthetic" or "real"."""
        return _data(dataset, self.synthetic)

    @cached_property
    def _texts(self) -> dict[tuple[str, str, int], tuple[str, bool]]:
        shown, digits = self.cells[self.cells["mean"].notna()], measures.decimals(self.metric)
        columns = (shown[c] for c in ("dataset", "method", "n_train", "mean", "std", "bold"))
        return {
            (dataset, method, n): (f"{mean:.{digits}f} ± {std:.{digits}f}", bool(bold))
            for dataset, method, n, mean, std, bold in zip(*columns, strict=True)
        }


def table(
    scores: pd.DataFrame,
    metric: str,
    methods: Sequence[str],
    datasets: Mapping[str, str],
    level: float = 0.05,
    note: str = "",
    *,
    synthetic: Collection[str],
) -> Table:
    """Summarise scores: mean and standard deviation over subjects, bold by the published rule.

    Seeds are averaged for each subject (and class) first. Mean and standard deviation (population, ddof 0)
    are then over subjects, or over all pairs of subject and class. A method, data set or size without
    scores stays empty.

    Args:
        scores: as `evaluation.read_scores` gives them; values are fractions. Other methods and data sets
            are ignored.
        metric: dice, precision, recall, or one of `measures`: a value of the column metric.
        methods: rows, in this order; only these are compared with each other.
        datasets: name and label of each data set, in this order.
        level: of the Wilcoxon test, see `statistics.compare_with_best`.
        note: added to the caption.
        synthetic: names of the data sets that are drawn, not measured.

    Raises:
        TedmError: where nothing has this metric, or methods were scored on different subjects.
    """
    known = scores["metric"].unique()
    if metric not in known:
        raise TedmError(
            f"scores: nothing has the metric {metric} (there are: {', '.join(known) or 'none'})"
        )
    rows = scores[
        (scores["metric"] == metric)
        & scores["method"].isin(methods)
        & scores["dataset"].isin(list(datasets))
    ]
    seeds = rows.groupby(["dataset", "n_train", "method"])["seed"].nunique()
    cells, tests = [], []
    for dataset in datasets:
        of_dataset = rows[rows["dataset"] == dataset]
        if of_dataset.empty:
            continue
        values = statistics.subject_values(of_dataset)
        where = {"dataset": dataset, "metric": metric, "data": _data(dataset, synthetic)}
        for n in values.columns.unique("n_train"):
            compared = values[[(n, m) for m in methods if (n, m) in values.columns]].droplevel(
                "n_train", axis=1
            )
            summary, tested = statistics.compare_with_best(
                compared, level, lower_is_better=metric in measures.LOWER_IS_BETTER
            )
            summary[["mean", "std"]] *= measures.scale(metric)
            summary["seeds"] = [int(seeds[dataset, n, m]) for m in summary["method"]]
            cells.append(summary.assign(n_train=n, **where))
            tests.append(tested.assign(n_train=n, **where))
    return Table(
        metric=metric,
        methods=tuple(methods),
        datasets=dict(datasets),
        sizes=tuple(sorted(int(n) for n in rows["n_train"].unique())),
        synthetic=frozenset(synthetic),
        level=level,
        classes=int(rows.groupby("dataset")["class"].nunique().max()) if len(rows) else 1,
        note=note,
        cells=_joined(cells, CELLS),
        tests=_joined(tests, TESTS),
    )


def too_few(tests: pd.DataFrame, level: float) -> bool:
    """Whether none of some tests could have fallen below the level, even if all subjects had agreed.

    Args:
        tests: rows of `TESTS`.
        level: of the test.
    """
    least = [
        statistics.least_p(int(pairs.max())) * max(int((pairs > 0).sum()), 1)
        for _, pairs in tests.groupby(["n_train", "metric", "reference", "method"])["pairs"]
    ]
    return bool(least) and min(least) >= level


def _data(dataset: str, synthetic: Collection[str]) -> str:
    return "synthetic" if dataset in synthetic else "real"


def _joined(parts: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    filled = [part for part in parts if len(part)]
    if not filled:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(filled, ignore_index=True)[list(columns)]


def write(made: Table | Sequence[Table], path: Path) -> list[Path]:
    """Write a table in all its forms, the same bytes for the same table.

    These are `table1.csv`, `table1.md`, `table1.tex`, `table1_long.csv` and `table1_p_values.csv`. Several
    tables of different metrics make one file of each form; the CSV then has a column more, the metric.

    Args:
        made: the table, or one for each metric.
        path: of the CSV for people; the others lie beside it.

    Returns:
        The files, in the order above.
    """
    parts = [made] if isinstance(made, Table) else list(made)
    people = [wide(part) for part in parts]
    if len(parts) > 1:
        for part, frame in zip(parts, people, strict=True):
            frame.insert(0, "metric", part.metric)
    beside = {
        path: pd.concat(people),
        path.with_name(f"{path.stem}_long.csv"): _stacked([part.cells for part in parts]),
        path.with_name(f"{path.stem}_p_values.csv"): _stacked([part.tests for part in parts]),
    }
    for file, frame in beside.items():
        with whole(file) as partial:
            frame.to_csv(partial, index=False, na_rep="nan", lineterminator="\n", encoding="utf-8")
    labels = [f"tab:{path.stem}" + f"-{part.metric}" * (len(parts) > 1) for part in parts]
    write_text(path.with_suffix(".md"), "\n".join(markdown(part) for part in parts))
    write_text(
        path.with_suffix(".tex"),
        "\n".join(latex(part, label) for part, label in zip(parts, labels, strict=True)),
    )
    csv, long, p_values = beside
    return [csv, path.with_suffix(".md"), path.with_suffix(".tex"), long, p_values]


def _stacked(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Below each other; what is empty would change the types of the columns."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled) if filled else frames[0]


def wide(made: Table) -> pd.DataFrame:
    """One row per data set and method, one column per training size; `*` behind bold cells."""
    rows = [
        {"dataset": label, "method": method}
        | {
            f"n={n}": text + "*" * bold
            for n in made.sizes
            for text, bold in [made.cell(dataset, method, n)]
        }
        | {"subjects": made.subjects(dataset), "data": made.data(dataset)}
        for dataset, label in made.datasets.items()
        for method in made.methods
    ]
    return pd.DataFrame(
        rows, columns=["dataset", "method", *(f"n={n}" for n in made.sizes), "subjects", "data"]
    )


def caption(made: Table) -> Iterator[str]:
    """What the reader of a table must know, sentence by sentence."""
    over = "test subjects" if made.classes == 1 else "test subjects and classes"
    most = int(made.cells["seeds"].max()) if len(made.cells) else 1
    least = int(made.cells["seeds"].min()) if len(made.cells) else 1
    seeds = f"{most}" if most == least else f"{least} to {most}"
    averaged = f", after averaging over {seeds} seeds for each subject" if most > 1 else ""
    name, unit = measures.named(made.metric)
    better = "; lower is better" if made.metric in measures.LOWER_IS_BETTER else ""
    yield (
        f"{name} in {unit}{better}, mean ± standard deviation over {over}{averaged}; n is the"
        " training size."
    )
    if unit != "percent":
        yield "What is there and was not predicted counts as the diagonal of the image or volume."
    corrected = ", Bonferroni-corrected over classes" if made.classes > 1 else ""
    yield (
        "Bold: the best mean and every method that a paired two-sided Wilcoxon signed-rank test does not"
        f" tell from it (p ≥ {made.level:g}{corrected})."
    )
    few = [label for name, label in made.datasets.items() if made.too_few(name)]
    if few:
        yield (
            "Too few subjects for this test to tell any two methods apart, so that all are bold:"
            f" {', '.join(few)}."
        )
    drawn = [label for name, label in made.datasets.items() if name in made.synthetic]
    if drawn:
        which = (
            "All data are synthetic"
            if len(drawn) == len(made.datasets)
            else f"Synthetic: {', '.join(drawn)}"
        )
        yield f"{which}, drawn by a program and not taken from patients."
    if made.note:
        yield made.note


def markdown(made: Table) -> str:
    """One table per data set, the caption below; GitHub's dialect."""
    text = ""
    for dataset, label in made.datasets.items():
        head = ["Method", *(f"n = {n}" for n in made.sizes)]
        rows = [
            [
                markdown_escaped(method),
                *(
                    f"**{text}**" if bold else text
                    for n in made.sizes
                    for text, bold in [made.cell(dataset, method, n)]
                ),
            ]
            for method in made.methods
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        text += f"#### {markdown_escaped(label)} · {_facts(made, dataset)}\n\n"
        for row in (head, rule, *rows):
            padded = [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
            text += f"| {' | '.join(padded)} |\n"
        text += "\n"
    return text + markdown_escaped(" ".join(caption(made))) + "\n"


def _facts(made: Table, dataset: str) -> str:
    count = made.subjects(dataset)
    if count == 0:
        return f"no scores · {made.data(dataset)} data"
    return f"{count} test subject{'s' * (count != 1)} · {made.data(dataset)} data"


def markdown_escaped(text: str) -> str:
    """Text as it is, in GitHub's dialect of Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def latex(made: Table, label: str = "tab:scores") -> str:
    r"""`table` environments to \input; they need the package booktabs, and UTF-8 as is LaTeX's default.

    What does not fit on a page goes on in a further table of the same number.
    """
    pages: list[list[str]] = [[]]
    for dataset in made.datasets:
        rows = len(made.methods) + 2 + (len(made.sizes) < NARROW)
        if pages[-1] and rows * (len(pages[-1]) + 1) > ROWS_OF_A_PAGE:
            pages.append([])
        pages[-1].append(dataset)
    lines = [r"% needs \usepackage{booktabs}"]
    for i, datasets in enumerate(pages):
        lines += _float(made, datasets, label if i == 0 else "")
    return "\n".join(lines) + "\n"


def _float(made: Table, datasets: Sequence[str], label: str) -> list[str]:
    """One `table` environment; without a label it goes on with the one before."""
    lines = [r"\begin{table}[tbp]", r"  \centering"]
    if label:
        text = latex_escaped(" ".join(caption(made)))
        lines += [rf"  \caption{{{text}}}", rf"  \label{{{label}}}"]
    else:
        lines += [r"  \addtocounter{table}{-1}", r"  \caption{(continued)}"]
    lines += [
        r"  \vspace{4pt}",
        r"  \footnotesize",
        r"  \setlength{\tabcolsep}{3.5pt}",
        rf"  \begin{{tabular}}{{l{'r' * len(made.sizes)}}}",
        r"    \toprule",
        "    " + " & ".join(["Method", *(f"$n = {n}$" for n in made.sizes)]) + r" \\",
    ]
    for dataset in datasets:
        heading = [made.datasets[dataset], _facts(made, dataset)]
        lines.append(r"    \midrule")
        for text in heading if len(made.sizes) < NARROW else [" · ".join(heading)]:
            # Of no width: a long name would pull the columns of numbers apart.
            words = rf"\rlap{{\textit{{{latex_escaped(text)}}}}}"
            lines.append(rf"    \multicolumn{{{1 + len(made.sizes)}}}{{l}}{{{words}}} \\")
        for method in made.methods:
            cells = [latex_escaped(method)]
            for n in made.sizes:
                text, bold = made.cell(dataset, method, n)
                escaped = latex_escaped(text)
                cells.append(rf"\textbf{{{escaped}}}" if bold else escaped)
            lines.append("    " + " & ".join(cells) + r" \\")
    return [*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{MICRO SIGN}": r"$\mu$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
}


def latex_escaped(text: str) -> str:
    """Text as it is, in LaTeX; "?" for letters that are neither Latin nor Greek: pdfLaTeX has none."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(_LATEX.get(character) or _letter(character) for character in composed)


def _letter(character: str) -> str:
    if character <= "\N{LATIN SMALL LETTER Z WITH CARON}":
        return character
    kind, _, name = unicodedata.name(character, "").partition(" LETTER ")
    if kind == "GREEK SMALL" and name.isalpha() and name != "OMICRON":
        return f"$\\{name.lower().replace('lamda', 'lambda')}$"
    return "?"
