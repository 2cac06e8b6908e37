"""Tables worked out by hand, in all their forms; the published numbers."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tedm.errors import TedmError
from tedm.report import published, tables

LABELS = {"jsrt": "JSRT & co. 50 %", "nih": "NIH_XLSor"}


def rows(values, method="TEDM", dataset="jsrt", n_train=1, seed=0, metric="dice", classes=("lungs",)):
    subjects = len(values) // len(classes)
    return pd.DataFrame(
        {
            "dataset": dataset,
            "subject": np.repeat([f"s{i}" for i in range(subjects)], len(classes)),
            "class": list(classes) * subjects,
            "method": method,
            "n_train": n_train,
            "seed": seed,
            "metric": metric,
            "value": np.asarray(values, float),
        }
    )


@pytest.fixture
def scores():
    good = np.array([0.91, 0.93, 0.92, 0.95, 0.90, 0.94, 0.89, 0.96])
    return pd.concat(
        [
            rows(good, "TEDM"),
            rows(good - [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08], "LEDM"),
            rows(good + 0.02, "TEDM", n_train=12),
            rows(good[:3], "TEDM", dataset="nih", n_train=12),
            rows(good[:3] / 2, "LEDM", dataset="nih", n_train=12),
            rows(good / 3, "Ignored"),
            rows(good, "TEDM", metric="recall"),
        ],
        ignore_index=True,
    )


@pytest.fixture
def made(scores):
    methods = ["LEDM", "TEDM", "Step_1"]
    return tables.table(scores, "dice", methods, LABELS, 0.05, "A note.", synthetic={"jsrt"})


def test_the_table_for_people_by_hand(made):
    # 0.91 … 0.96: mean 0.925, deviations ±0.5, 1.5, 2.5, 3.5 %: population std sqrt(5.25) = 2.29 %.
    # LEDM: 0.045 lower on average; 0.90 0.91 0.89 0.91 0.85 0.88 0.82 0.88: mean 0.88, std 2.915 %.
    # Eight differences of one sign: p = 2/256 < 0.05.
    expected = pd.DataFrame(
        [
            ("JSRT & co. 50 %", "LEDM", "88.0 ± 2.9", "–", 8, "synthetic"),
            ("JSRT & co. 50 %", "TEDM", "92.5 ± 2.3*", "94.5 ± 2.3*", 8, "synthetic"),
            ("JSRT & co. 50 %", "Step_1", "–", "–", 8, "synthetic"),
            ("NIH_XLSor", "LEDM", "–", "46.0 ± 0.4*", 3, "real"),
            ("NIH_XLSor", "TEDM", "–", "92.0 ± 0.8*", 3, "real"),
            ("NIH_XLSor", "Step_1", "–", "–", 3, "real"),
        ],
        columns=["dataset", "method", "n=1", "n=12", "subjects", "data"],
    )
    pd.testing.assert_frame_equal(tables.wide(made), expected)


def test_the_long_form_has_every_digit(made, scores):
    assert list(made.cells.columns)[:9] == [
        *("dataset", "method", "n_train", "mean", "std", "bold", "p_value", "subjects", "seeds"),
    ]
    cell = made.cells[(made.cells["method"] == "LEDM") & (made.cells["dataset"] == "jsrt")].iloc[0]
    values = scores[(scores["method"] == "LEDM") & (scores["dataset"] == "jsrt")]["value"]
    assert cell["mean"] == pytest.approx(100 * np.mean(values), rel=1e-14)
    assert cell["std"] == pytest.approx(100 * np.std(values), rel=1e-14)
    assert cell["p_value"] == pytest.approx(2 / 256)
    assert (cell["subjects"], cell["seeds"], cell["bold"], cell["data"]) == (8, 1, False, "synthetic")
    assert len(made.cells) == 5


def test_every_p_value_is_kept(made):
    assert list(zip(made.tests["dataset"], made.tests["reference"], made.tests["method"], strict=True)) == [
        ("jsrt", "TEDM", "LEDM"),
        ("nih", "TEDM", "LEDM"),
    ]
    assert made.tests["p_value"].tolist() == [pytest.approx(2 / 256), pytest.approx(2 / 8)]


def test_methods_outside_the_table_do_not_count_in_its_comparisons(scores):
    made = tables.table(scores, "dice", ["LEDM", "Ignored"], LABELS, synthetic=())
    assert made.cell("jsrt", "LEDM", 1) == ("88.0 ± 2.9", True)
    assert made.cell("jsrt", "Ignored", 1)[1] is False


def test_seeds_are_averaged_before_the_spread_over_subjects():
    scores = pd.concat([rows([0.2, 0.4]), rows([0.4, 0.2], seed=1)])
    made = tables.table(scores, "dice", ["TEDM"], {"jsrt": "JSRT"}, synthetic=())
    assert made.cell("jsrt", "TEDM", 1) == ("30.0 ± 0.0", True)
    assert made.cells["seeds"].tolist() == [2]
    assert "averaging over 2 seeds" in tables.markdown(made)


def test_classes_are_averaged_and_the_test_is_corrected():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 0.9, (2, 10, 2))
    b -= 0.05
    classes = ("x", "y")
    scores = pd.concat([rows(a.ravel(), "a", classes=classes), rows(b.ravel(), "b", classes=classes)])
    made = tables.table(scores, "dice", ["a", "b"], {"jsrt": "JSRT"}, synthetic=())
    assert made.cells["mean"].tolist() == [pytest.approx(100 * a.mean()), pytest.approx(100 * b.mean())]
    p = min(2 * min(scipy.stats.wilcoxon(a[:, k], b[:, k]).pvalue for k in range(2)), 1)
    assert made.cells["p_value"].min() == pytest.approx(p, rel=1e-12)
    assert made.subjects("jsrt") == 10
    assert "Bonferroni" in tables.markdown(made)


def test_a_data_set_without_scores_is_dashes_and_no_crash(scores, tmp_path):
    made = tables.table(scores, "dice", ["TEDM"], {"jsrt": "JSRT", "later": "Later"}, synthetic=())
    assert made.cell("later", "TEDM", 1) == ("–", False)
    assert made.subjects("later") == 0
    tables.write(made, tmp_path / "table.csv")


def test_no_method_with_scores_is_dashes_and_no_crash(scores, tmp_path):
    made = tables.table(scores, "dice", ["Future"], LABELS, synthetic={"jsrt"})
    for file in tables.write(made, tmp_path / "table.csv"):
        assert file.stat().st_size > 0


def test_an_absent_class_everywhere_is_a_dash(tmp_path):
    made = tables.table(rows([np.nan, np.nan]), "dice", ["TEDM"], {"jsrt": "JSRT"}, synthetic=())
    assert made.cell("jsrt", "TEDM", 1) == ("–", False)
    tables.write(made, tmp_path / "table.csv")


def test_an_unknown_metric_is_an_error_that_lists_the_known(scores):
    with pytest.raises(TedmError, match=r"metric jaccard \(there are: dice, recall\)"):
        tables.table(scores, "jaccard", ["TEDM"], LABELS, synthetic=())


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_all_forms_are_written_with_the_same_bytes_every_time(made, scores, tmp_path):
    names = ["table1.csv", "table1.md", "table1.tex", "table1_long.csv", "table1_p_values.csv"]
    first = tables.write(made, tmp_path / "a" / "table1.csv")
    shuffled = scores.sample(frac=1, random_state=0)
    again = tables.table(
        shuffled, "dice", ["LEDM", "TEDM", "Step_1"], LABELS, 0.05, "A note.", synthetic={"jsrt"}
    )
    second = tables.write(again, tmp_path / "b" / "table1.csv")
    assert [file.name for file in first] == names
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(names)
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert b"\r" not in a.read_bytes()


def test_every_form_says_which_data_are_synthetic(made, tmp_path):
    for file in tables.write(made, tmp_path / "table1.csv"):
        text = file.read_text(encoding="utf-8")
        assert "synthetic" in text, file.name
        assert "real" in text, file.name


def test_the_long_form_reads_back_to_the_last_bit(made, tmp_path):
    tables.write(made, tmp_path / "table1.csv")
    read = pd.read_csv(tmp_path / "table1_long.csv", dtype="str")
    for column in ("mean", "std", "p_value"):
        assert [float(text) for text in read[column]] == made.cells[column].tolist()


def test_markdown_groups_by_data_set_and_escapes_names(made):
    text = tables.markdown(made)
    lines = text.splitlines()
    assert lines[0] == "#### JSRT & co. 50 % · 8 test subjects · synthetic data"
    assert "#### NIH\\_XLSor · 3 test subjects · real data" in lines
    body = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in body}) == 1
    assert "| TEDM    | **92.5 ± 2.3** | **94.5 ± 2.3** |" in body
    assert "| Step\\_1 |              – |              – |" in body
    assert lines[-1].endswith(
        "Synthetic: JSRT & co. 50 %, drawn by a program and not taken from patients. A note."
    )


def test_latex_is_balanced_and_escaped(made):
    text = tables.latex(made, label="tab:table1")
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert text.replace(r"\{", "").replace(r"\}", "").count("{") == text.replace(r"\}", "").count("}")
    assert text.isascii()
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in body} == {2}
    assert r"TEDM & \textbf{92.5 $\pm$ 2.3} & \textbf{94.5 $\pm$ 2.3} \\" in text
    assert r"Step\_1 & -- & -- \\" in text
    assert r"JSRT \& co. 50 \%" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_latex_compiles(scores, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    nasty = {"jsrt": r'a&b %c $d #e _f {g} ~h ^i \j <k> |l| "m" – ± × ≥ …', "nih": "Zürich λ µm 日本 Łódź"}
    made = tables.table(scores, "dice", ["TEDM", "LEDM"], nasty, note="50 % & more_", synthetic={"jsrt"})
    tables.write(made, tmp_path / "table1.csv")
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table1}\end{document}"
    (tmp_path / "main.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:]
    assert (tmp_path / "main.pdf").exists()


def test_where_lower_is_better_the_lowest_is_bold_and_in_its_unit(scores):
    far = scores[scores["metric"] == "dice"].assign(metric="hd95_mm", value=lambda r: 100 * r["value"])
    made = tables.table(far, "hd95_mm", ["LEDM", "TEDM"], LABELS, synthetic={"jsrt"})
    assert made.cell("jsrt", "LEDM", 1) == ("88.0 ± 2.9", True)  # mm are not percent
    assert made.cell("jsrt", "TEDM", 1) == ("92.5 ± 2.3", False)
    assert next(tables.caption(made)).startswith(
        "95th-percentile Hausdorff distance in mm; lower is better, mean ± standard deviation"
    )


def test_the_caption_says_where_all_are_bold_because_subjects_are_too_few(scores):
    made = tables.table(scores, "dice", ["LEDM", "TEDM"], LABELS, synthetic=())
    assert not made.too_few("jsrt")  # eight subjects: p can be 2 / 2^8
    assert made.too_few("nih")  # three: never below 0.25
    assert made.cells.loc[made.cells["dataset"] == "nih", "bold"].all()
    [few] = [s for s in tables.caption(made) if "Too few" in s]
    assert few.endswith("so that all are bold: NIH_XLSor.")
    seven = [f"c{k}" for k in range(7)]  # and eight subjects with seven classes: 7 * 2 / 2^8 = 0.055
    values = np.linspace(0.5, 0.9, 56)
    of_seven = pd.concat([rows(values, "A", classes=seven), rows(values / 2, "B", classes=seven)])
    assert tables.table(of_seven, "dice", ["A", "B"], {"jsrt": "JSRT"}, synthetic=()).too_few("jsrt")


def test_a_table_that_is_longer_than_a_page_goes_on_under_the_same_number():
    methods = [f"m{i}" for i in range(22)]
    good = np.linspace(0.5, 0.9, 4)
    scores = pd.concat([rows(good, m, dataset) for m in methods for dataset in "abcd"])
    made = tables.table(scores, "dice", methods, {d: d.upper() for d in "abcd"}, synthetic=())
    text = tables.latex(made, "tab:long")
    pages = text.split(r"\begin{table}")[1:]
    assert [page.count(r"\textit") for page in pages] == [4, 4]
    assert [page.count(r" \\") for page in pages] == [49, 49]  # methods, two lines a heading, and the names
    assert text.count(r"\label{tab:long}") == text.count(r"\addtocounter{table}{-1}") == 1
    assert r"\caption{(continued)}" in pages[1]


def test_a_hundred_thousand_scores_take_seconds():
    rng = np.random.default_rng(0)
    methods = [f"m{i}" for i in range(13)]
    scores = pd.concat(
        rows(rng.random(60), method, dataset, n, seed, metric)
        for method in methods
        for dataset in "abc"
        for n in (1, 3, 6, 12, 24)
        for seed in range(3)
        for metric in ("dice", "precision", "recall")
    )
    assert len(scores) > 100_000
    started = time.monotonic()
    tables.table(scores, "dice", methods, dict.fromkeys("abc", "x"), synthetic=())
    assert time.monotonic() - started < 5


def test_tables_need_neither_torch_nor_matplotlib():
    code = "import sys, tedm.report.tables; print({'torch', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# ── the published numbers ───────────────────────────────────────────────────────────────────────


def test_the_published_tables_are_there():
    cells = published.load()
    assert sorted(cells["table"].unique()) == [1, 2, 3, 5, 6]
    assert len(cells) == 510
    cell = cells[
        (cells["table"] == 1)
        & (cells["dataset"] == "NIH")
        & (cells["method"] == "TEDM")
        & (cells["n_train"] == 1)
    ]
    assert cell[["mean", "std", "bold"]].to_numpy().tolist() == [[80.3, 9.0, True]]


def test_illegible_published_cells_are_nan_as_a_whole():
    cells = published.load()
    broken = cells[cells[["mean", "std", "bold"]].isna().any(axis=1)]
    assert broken[["mean", "std", "bold"]].isna().all().all()
    where = set(broken[["metric", "dataset", "method", "n_train"]].itertuples(index=False, name=None))
    assert ("precision", "BraTS", "TEDM", 1) in where
    assert len(broken) == 6
    assert cells["mean"].dropna().between(0, 100).all()
    assert cells["std"].dropna().between(0, 100).all()
