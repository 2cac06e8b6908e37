"""The report: one page that needs nothing else, true to its files, and without an error in a browser."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.path import Path as Outline

from tedm import config, evaluation, measures
from tedm.data import prepared
from tedm.report import overlays, page, results, study

PROJECT = Path(__file__).parents[1]
EXPERIMENT = yaml.safe_load((PROJECT / "tests" / "tiny.yaml").read_text())
NASTY = '</script><b>& "x" \''


def discs(count, classes=1, size=16):
    """Masks of discs that grow, (N, K, H, W); the last of several classes is missing in the first image."""
    y, x = np.mgrid[:size, :size]
    radius = np.linspace(3, 6, count)[:, None, None, None] / classes
    centre = (np.arange(classes)[:, None, None] + 0.5) * size / classes
    masks = ((x - centre) ** 2 + (y - 8) ** 2 < radius**2).astype(np.uint8)
    if classes > 1:
        masks[0, -1] = 0
    return masks


def write_run(base, e, images=6, slices=1):
    """Data, scores and masks of an experiment, as its jobs would leave them."""
    for dataset in e.evaluation.test_on:
        classes = list(e.image.classes)
        truth = discs(images, len(classes))
        subjects = [f"{dataset}-{i // slices}" for i in range(images)]
        names = [f"{dataset}-{i}" for i in range(images)]
        about = {
            "intensity_range": (0, 255),
            "synthetic": dataset in e.synthetic,
            "source": "test",
            "licence": "",
            "cite": "",
        }
        path = base / "data" / f"{dataset}.h5"
        grey = (200 * truth.max(axis=1, keepdims=True)).astype(np.uint8)
        splits = ["test"] * images
        prepared.write(path, dataset, grey, truth, names, subjects, splits, classes, **about)
        path.with_suffix(".json").write_text(json.dumps({"digest": "d1" * 32}))
        sources = {name: [e.method_of(name)] for name in e.baselines} | {
            name: [name, *head.readings] for name, head in e.heads.items()
        }
        runs = [(n, seed) for n in e.evaluation.train_sizes for seed in e.evaluation.seeds]
        for source, methods in sources.items():
            for n, seed in runs:
                tables, packed = [], {"ids": np.array(names), "shape": np.array(truth.shape)}
                for k, method in enumerate(methods):
                    masks = np.roll(truth, k + (n < 2) + seed, axis=3)
                    bins = measures.bins(0.1 + 0.8 * masks, truth)
                    wanted = e.evaluation.metrics
                    spacing = np.tile([3.0, 0.5, 0.7], (images, 1))
                    found = pd.concat(
                        [
                            evaluation.scores(masks, truth, subjects, classes),
                            measures.of_masks(masks, truth, subjects, classes, wanted, spacing),
                            measures.of_bins(bins, subjects, classes, wanted),
                        ]
                    )
                    tables.append(
                        evaluation.labelled(
                            *(found,),
                            dataset=dataset,
                            method=method,
                            n_train=n,
                            seed=seed,
                            synthetic=about["synthetic"],
                        )
                    )
                    packed |= {f"mask:{method}": np.packbits(masks), f"bins:{method}": bins.sum(axis=0)}
                out = base / "scores" / source / f"n{n}" / f"seed{seed}" / dataset
                evaluation.write_scores(out.with_suffix(".csv"), pd.concat(tables))
                np.savez(out.with_suffix(".npz"), **packed)
    backbone = base / "backbones" / "ddpm" / "digest.json"
    backbone.parent.mkdir(parents=True)
    backbone.write_text(json.dumps({"digest": "b2" * 32}))
    times = base / "benchmarks" / "heads" / "LR.tsv"
    times.parent.mkdir(parents=True)
    times.write_text("s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n")
    with times.open("a") as file:
        file.write("90.0\t0:01:30\t512.5\t1\t1\t1\t1\t1\t1\t60.0\n")


def specs(e):
    """What the rules hand to the three jobs."""
    common = {
        "title": e.title,
        "synthetic": e.synthetic,
        "methods": e.methods(),
        "datasets": [[d, e.datasets[d].label] for d in e.evaluation.test_on],
        "sources": [*e.baselines, *e.heads],
        "labels": {name: e.method_of(name) for name in e.baselines},
        "train_sizes": e.evaluation.train_sizes,
        "seeds": e.evaluation.seeds,
        "level": e.evaluation.level,
        "tables": study.tables(e),
        "train_on": e.evaluation.train_on,
        "seed": e.seed,
    }
    drawn = {"figures": study.figures(e), "examples": study.examples(e), "pipeline": study.pipeline(e)}
    drawn["reliability"] = study.reliability(e)
    claims = {"claims": study.claims(e), "published": study.published_names(e)}
    shown = ["figure1", *study.figures(e), *study.examples(e)]
    shown += ["reliability"] if study.reliability(e) else []
    of_page = {"left_out": study.left_out(e), "figures": shown, "config": e.model_dump(mode="json")}
    return common | claims, common | drawn, common | of_page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Results directory and settings of a run whose title is hostile to HTML."""
    return reported(tmp_path_factory.mktemp("run"), config.parse({**EXPERIMENT, "title": NASTY}))


def reported(base, e, **drawn):
    """Results directory, and settings of the page, of a run that has its report."""
    write_run(base, e, **drawn)
    tables, figures, of_page = specs(e)
    results.write_tables(tables, base / "scores", base)
    results.write_table1(tables, base / "scores", base / "table1.csv")
    results.draw_figures(
        figures, base / "scores", base / "statistics" / "summary.csv", base / "data", base / "figures"
    )
    page.write_page(of_page, base, base / "report.html")
    return base, of_page


@pytest.fixture(scope="module")
def run_of_volumes(tmp_path_factory):
    """The same of volumes with three classes, two seeds, every further metric, and one of the rivals."""
    pytest.importorskip("monai")
    brains = yaml.safe_load((PROJECT / "experiments" / "brain.yaml").read_text())
    brains["image"] = {"size": 32, "classes": ["left thalamus", "right thalamus", "brain stem"]}
    wanted = ["iou", "volume_similarity", "hd95", "assd", "brier", "ece"]
    brains["evaluation"] |= {"seeds": [0, 1], "metrics": wanted}
    brains["pretraining"] = {"cl": {"type": "global", "data": "brains"}}
    rival = {"label": "Global & Local CL", "pretrained": "cl"}
    brains["baselines"] = {"glocal": rival, **brains["baselines"]}
    return reported(tmp_path_factory.mktemp("volumes"), config.parse(brains), images=16, slices=2)


class Elements(html.parser.HTMLParser):
    """Start tags with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._in_script = tag == "script"

    def handle_data(self, data):
        if self._in_script:
            self.scripts.append(data)
            self._in_script = False


@pytest.fixture(scope="module")
def elements(run):
    return Elements((run[0] / "report.html").read_text(encoding="utf-8"))


def test_the_page_asks_the_network_for_nothing(elements):
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "poster"):
            target = attributes.get(name, "#")
            assert target.startswith(("data:", "#")), (tag, target[:80])
    assert "@import" not in "".join(elements.scripts)


def test_a_hostile_title_stays_text(run, elements):
    text = (run[0] / "report.html").read_text(encoding="utf-8")
    assert NASTY not in text
    assert "<b>" not in text
    assert [tag for tag, _ in elements.found].count("script") == 2
    json.loads(elements.scripts[0])


def test_every_picture_has_words_and_every_figure_is_there(run, elements):
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == len(run[1]["figures"])
    assert all(len(picture["alt"]) > 20 for picture in pictures)
    for name in run[1]["figures"]:
        for suffix in (".png", ".pdf"):
            assert (run[0] / "figures" / f"{name}{suffix}").stat().st_size > 1000


def test_every_column_and_row_of_a_table_has_a_heading(elements):
    headings = [attributes for tag, attributes in elements.found if tag == "th"]
    assert headings
    assert all(attributes.get("scope") in ("row", "col") for attributes in headings)
    count = [tag for tag, _ in elements.found]
    assert count.count("table") == count.count("caption")


def test_the_page_of_volumes_has_every_class_seed_and_metric(run_of_volumes):
    base, spec = run_of_volumes
    text = (base / "report.html").read_text(encoding="utf-8")
    shown = json.loads(Elements(text).scripts[0])
    assert shown["remark"] == "Of 2 seeds, seed 0 is shown; the number in the table is their mean."
    assert shown["classes"]["brains"] == ["left thalamus", "right thalamus", "brain stem"]
    assert "Table 1." not in text  # of volumes alone, Table 3 says the same
    assert "brains|Global &amp; Local CL|4" in text
    long = pd.read_csv(base / "further_long.csv")
    assert list(dict.fromkeys(long["metric"])) == [
        *("iou", "volume_similarity", "hd95_mm", "assd_mm", "brier", "ece"),
    ]
    assert set(long["seeds"]) == {2}
    for row in long.itertuples():
        digits = 2 if row.metric in ("brier", "ece") else 1
        assert f"{row.mean:.{digits}f} ± {row.std:.{digits}f}" in text
    for metric, of_metric in long.groupby("metric"):
        for _, cells in of_metric.groupby("n_train"):
            best = cells["mean"].idxmin() if metric in measures.LOWER_IS_BETTER else cells["mean"].idxmax()
            assert cells.loc[best, "bold"]
    for words in (
        "95th-percentile Hausdorff distance in mm (lower is better)",
        "3 classes; training sizes 1, 4; 2 seeds. Tested on UK Biobank (phantom) (8 subjects).",
    ):
        assert words in text
    assert (base / "figures" / "reliability.pdf").stat().st_size > 1000
    assert {"further", "table3", "table6"} == set(spec["tables"])


def test_every_table_of_volumes_compiles(run_of_volumes, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    names = sorted(path.stem for path in run_of_volumes[0].glob("*.tex"))
    assert names == ["further", "table1", "table3", "table6"]
    for name in names:
        shutil.copy(run_of_volumes[0] / f"{name}.tex", tmp_path)
    inputs = "".join(rf"\input{{{name}}}\clearpage" for name in names)
    document = (
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    )
    (tmp_path / "main.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Float too large" not in done.stdout


def test_every_cell_of_dice_leads_to_its_best_middle_and_worst_subject(run, elements):
    shown = json.loads(elements.scripts[0])
    cells = [a["data-cell"] for tag, a in elements.found if "data-cell" in a]
    assert len(cells) == 2 * 2 * 4  # data sets, sizes, methods
    for key in cells:
        dataset, method, n = key.split("|")
        source = "LR" if method.startswith("LR") else method
        scores = pd.read_csv(run[0] / "scores" / source / f"n{n}" / "seed0" / f"{dataset}.csv")
        dice = scores[(scores["metric"] == "dice") & (scores["method"] == method)].set_index("subject")
        three = shown["cells"][key]
        assert len(three) == 3
        assert three[0][1] == round(100 * dice["value"].max(), 1)
        assert three[2][1] == round(100 * dice["value"].min(), 1)
        for subject, value, _ in three:
            assert value == round(100 * dice["value"][subject], 1)
            assert f"{dataset}|{subject}" in shown["images"]


def test_numbers_provenance_and_what_is_left_out_are_on_the_page(run):
    text = (run[0] / "report.html").read_text(encoding="utf-8")
    long = pd.read_csv(run[0] / "table1_long.csv")
    for row in long.itertuples():
        assert f"{row.mean:.1f} ± {row.std:.1f}" in text
    for words in ("d1" * 32, "b2" * 32, "1.5 min", "512 MB", "All data are synthetic", "Tables 3 and 6"):
        assert words in text, words
    saved = re.search(r"<pre[^>]*>(.*?)</pre>", text, flags=re.S)
    assert saved is not None
    written = yaml.safe_load(html.unescape(saved[1]))
    assert config.parse(written) == config.parse({**EXPERIMENT, "title": NASTY})


def test_the_same_files_give_the_same_page(run, tmp_path):
    page.write_page(run[1], run[0], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (run[0] / "report.html").read_bytes()


def test_the_tables_of_two_metrics_have_both_in_every_form(run):
    made = pd.read_csv(run[0] / "table5.csv")
    assert made.columns[0] == "metric"
    assert set(made["metric"]) == {"precision", "recall"}
    assert set(pd.read_csv(run[0] / "table5_long.csv")["metric"]) == {"precision", "recall"}
    assert (run[0] / "table5.tex").read_text().count(r"\begin{table}") == 2
    assert "tab:table5-recall" in (run[0] / "table5.tex").read_text()


def test_the_tables_of_two_metrics_compile(run, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    shutil.copy(run[0] / "table5.tex", tmp_path)
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table5}\end{document}"
    (tmp_path / "main.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_code_of_the_docs_runs(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").symlink_to(run[0], target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"^```python\n(.*?)^```", (PROJECT / "docs" / "report.md").read_text(), re.M | re.S)
    exec(code, {})
    assert "mean_rank" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_a_contour_encloses_exactly_the_pixels_of_its_mask(seed):
    draw = np.random.default_rng(seed)
    mask = (draw.random((9, 12)) < 0.5).astype(np.uint8)
    y, x = np.mgrid[:9, :12]
    centres = np.stack([2 * x.ravel() + 1, 2 * y.ravel() + 1], axis=1)
    inside = np.zeros(mask.size, bool)
    for part in re.findall(r"M([^M]+)z", overlays._path(mask)):
        start, moves = part.split("l")
        steps = np.array(moves.split(), int).reshape(-1, 2)
        corners = np.array(start.split(), int) + np.concatenate([[[0, 0]], np.cumsum(steps, axis=0)])
        inside ^= Outline(corners).contains_points(centres)
    np.testing.assert_array_equal(inside.reshape(mask.shape), mask == 1)
    assert overlays._path(np.zeros((4, 4), np.uint8)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "words"), [("run", "2 names, said "), ("run_of_volumes", "5 names, said Of 2 seeds")]
)
def test_a_browser_opens_the_page_without_an_error(of, words, request, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    text = (request.getfixturevalue(of)[0] / "report.html").read_text(encoding="utf-8")
    # Clicks on a number, a figure and a heading; what came of it goes into the title.
    clicks = """<script>
        const said = [];
        addEventListener("error", (event) => said.push("error " + event.message));
        document.querySelector(".cell").click();
        said.push(document.querySelectorAll("#viewer svg image").length + " images");
        said.push(document.querySelectorAll("#viewer .key span").length + " names");
        said.push("said " + document.querySelector("#viewer-body").lastChild.textContent.slice(0, 10));
        document.querySelector("#viewer").close();
        document.querySelector(".enlarge").click();
        said.push(document.querySelectorAll("#viewer img").length + " figure");
        const frame = document.querySelector(".zoomed");
        said.push(frame.scrollWidth >= 900 && frame.tabIndex === 0 ? "enlarged" : "not enlarged");
        const reached = [...document.querySelectorAll("main button, main summary, main a")];
        said.push(reached.every((one) => one.tabIndex === 0) ? "by key" : "not by key");
        document.querySelectorAll(".sortable thead button")[1].click();
        const rows = [...document.querySelector(".sortable").tBodies[0].rows];
        const column = rows.map((row) => +row.cells[1].dataset.sort);
        said.push(column.every((v, i) => i === 0 || v <= column[i - 1]) ? "sorted" : "unsorted");
        document.title = said.join(", ");
    </script></body>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", clicks), encoding="utf-8")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", str(tmp_path / "page.html")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert f"<title>3 images, {words}, 1 figure, enlarged, by key, sorted</title>" in done.stdout
