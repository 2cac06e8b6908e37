"""Claims, and what of an experiment answers to the study: on scores whose verdict is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tedm import config
from tedm.report import beside, claims, published, study

PROJECT = Path(__file__).parents[1]


def demo():
    return config.load(PROJECT / "config.yaml")


def score_rows(gaps, subjects=20, sizes=(1, 6)):
    """Scores of two methods whose differences are known: {data set: values of A - B, (subjects,)}."""
    draw, rows = np.random.default_rng(0), []
    for dataset, gap in gaps.items():
        for n in sizes:
            b = draw.uniform(0.6, 0.8, subjects)
            for method, values in {"A": b + gap, "B": b}.items():
                for i, value in enumerate(values):
                    rows.append((dataset, f"s{i}", "lungs", method, n, 0, "dice", value))
    columns = ["dataset", "subject", "class", "method", "n_train", "seed", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


CLAIM = {"claim": "A beats B", "better": ["A"], "worse": ["B"], "names": ["A", "B"]}


def assessed(gaps, **options):
    rows = score_rows(gaps, **options)
    return claims.assess(rows, [CLAIM], {d: d.upper() for d in gaps}, next(iter(gaps)), 0.05)


def test_verdicts_are_those_of_test_and_interval():
    noise = np.random.default_rng(1).normal(0, 0.01, 20)
    gaps = {"up": 0.05 + noise, "down": -0.05 + noise, "level": noise - noise.mean()}
    found = assessed(gaps)
    overall = found[found["n_train"] == claims.ALL_SIZES].set_index("dataset")
    assert overall["verdict"].to_dict() == {"UP": "supported", "DOWN": "contradicted", "LEVEL": "undecided"}
    assert overall["domain"].tolist() == ["in domain", "out of domain", "out of domain"]
    assert overall.loc["UP", "difference"] == pytest.approx(100 * gaps["up"].mean())
    assert overall.loc["UP", "rank_biserial"] == 1
    # Three tests: Holm takes the smallest p-value (all 20 signs alike: 2 / 2^20) times three.
    assert overall.loc["UP", "p_holm"] == pytest.approx(3 * 2 / 2**20)


def test_a_mean_that_its_interval_does_not_tell_from_zero_is_undecided():
    gap = np.full(20, 0.01)
    gap[0] = -0.3  # one subject is lost: ranks say yes, the mean says no
    found = assessed({"odd": gap})
    row = found[found["n_train"] == claims.ALL_SIZES].iloc[0]
    assert row["p_holm"] < 0.05
    assert row["low"] < 0 < row["high"]
    assert row["verdict"] == "undecided"


def test_what_so_few_subjects_could_not_show_is_not_tested():
    # All signs alike: p = 2 / 2^5 = 0.0625 with five subjects, and 0.03125 with six.
    found = assessed({"few": np.linspace(0.2, 0.3, 5)}, subjects=5)
    assert set(found["verdict"]) == {"not tested"}
    assert found["p_holm"].isna().all()
    [said] = claims.sentences(found)
    assert said.verdict == "not tested"
    assert "So few subjects could not show it" in said.evidence
    assert "p " not in said.evidence.split(":")[1]
    found = assessed({"enough": np.linspace(0.2, 0.3, 6)}, subjects=6)
    overall = found[found["n_train"] == claims.ALL_SIZES].iloc[0]
    assert (overall["verdict"], overall["p_holm"]) == ("supported", 2 / 2**6)


def test_a_claim_about_other_domains_is_not_tested_where_the_labels_came_from():
    rows = score_rows({"home": np.linspace(0.04, 0.06, 20), "away": np.linspace(0.04, 0.06, 20)})
    about = {**CLAIM, "out_of_domain": True}
    found = claims.assess(rows, [about], {"home": "HOME", "away": "AWAY"}, "home", 0.05)
    overall = found[found["n_train"] == claims.ALL_SIZES].set_index("dataset")
    assert overall["verdict"].to_dict() == {"HOME": "not tested", "AWAY": "supported"}
    assert overall.loc["AWAY", "p_holm"] == pytest.approx(2 / 2**20)  # the only test: nothing to correct
    home, _ = claims.sentences(found)
    assert "the claim is about other ones" in home.evidence


def test_the_sentence_of_a_difference_that_rounds_to_nothing_has_no_sign():
    assert [claims.signed(x) for x in (0.04, -0.04, 1.26, -1.26)] == ["0.0", "0.0", "+1.3", "−1.3"]


def test_sentences_say_who_where_how_much_and_how_sure():
    found = assessed({"up": np.linspace(0.04, 0.06, 20)})
    [said] = claims.sentences(found)
    assert (said.claim, said.verdict, said.compared) == ("A beats B", "supported", "A against B")
    assert said.lead == "On UP, A is 5.0 points of Dice above B."
    for words in (
        "In domain, 20 subjects, mean of 2 training sizes: difference +5.0, 95 % interval +4",
        "p < 0.001",
        "In this run, that supports the claim.",
        "supported at n = 1, 6.",
    ):
        assert words in said.evidence
    text = claims.markdown(found)
    assert text.startswith("# The study's claims in this run\n\n## A beats B\n\n- **supported**: On UP")


def test_a_claim_about_absent_methods_is_left_out():
    rows = score_rows({"up": np.full(20, 0.1)})
    absent = {**CLAIM, "worse": ["C"]}
    found = claims.assess(rows, [absent], {"up": "UP", "later": "Later"}, "up", 0.05)
    assert found.empty
    assert claims.sentences(found) == []
    assert "no methods" in claims.markdown(found)


# ── what of an experiment answers to the study ──────────────────────────────────────────────────


def test_the_demo_has_the_tables_of_radiographs_and_says_what_it_leaves_out():
    e = demo()
    made = study.tables(e)
    assert list(made) == ["table2", "table5"]
    assert made["table2"]["methods"] == ["TEDM", "TEDM t=1", "TEDM t=10", "TEDM t=25"]
    assert made["table5"]["metrics"] == ["precision", "recall"]
    assert study.left_out(e) == ["Tables 3 and 6, Figure 4: no test set of volumes (UK Biobank, BraTS)."]
    assert [t for t, _ in study.figures(e)["figure2"]["steps"]] == [1, 10, 25, 50, 200, 400, 600, 800]
    assert study.figures(e)["figure2"]["beside"] == ["Supervised", "LEDM"]
    assert list(study.examples(e)) == ["figure3_jsrt", "figure3_nih", "figure3_montgomery"]


def test_brains_have_the_tables_of_volumes():
    e = config.load(PROJECT / "experiments" / "brain.yaml")
    assert list(study.tables(e)) == ["table3", "table6"]
    assert any("Tables 2 and 5" in reason for reason in study.left_out(e))
    assert list(study.examples(e)) == ["figure4_brains"]


def test_the_demos_claims_compare_what_the_study_compares():
    found = {claim["claim"]: claim for claim in study.claims(demo()) if "LR" not in claim["better"]}
    assert found["Concatenation hurts"]["better"] == ["TEDM"]
    assert found["Concatenation hurts"]["worse"] == ["LEDMe"]  # LEDM reads other steps
    assert found["Voting beats single steps"]["worse"] == ["TEDM t=1", "TEDM t=10", "TEDM t=25"]
    small = found["Small steps generalise better"]
    assert small["better"] == ["LR t=1", "LR t=10", "LR t=25", "LR t=50"]
    assert small["worse"] == ["LR t=200", "LR t=400", "LR t=600", "LR t=800"]


def with_contrastive_baselines():
    e = demo()
    network = e.baselines["Supervised"]
    rivals = {
        name: network.model_copy(update={"label": label, "pretrained": name})
        for name, label in {"global": "Global CL", "local": "Global & Local CL"}.items()
    }
    return e.model_copy(update={"baselines": {**rivals, "Supervised": network}})


def test_the_rivals_of_table_1_are_rows_under_their_published_names():
    e = with_contrastive_baselines()
    names = study.published_names(e)["methods"]
    assert {n: names[n] for n in map(e.method_of, e.baselines)} == {
        "Global CL": "Global CL",
        "Global & Local CL": "Global & Local CL",
        "Supervised": "Sup. Baseline",
    }
    assert study.figures(e)["figure2"]["beside"] == ["Supervised", "LEDM"]
    rivals = {(c["claim"], c["worse"][0]) for c in study.claims(e) if "features beat" in c["claim"]}
    assert rivals == {
        ("Diffusion features beat the supervised network", "Supervised"),
        ("Diffusion features beat contrastive pretraining", "Global CL"),
        ("Diffusion features beat contrastive pretraining", "Global & Local CL"),
    }


def test_what_is_scored_beyond_dice_has_a_table_of_its_own():
    e = demo()
    assert "further" not in study.tables(e)
    asked = e.model_copy(update={"evaluation": e.evaluation.model_copy(update={"metrics": ["iou", "ece"]})})
    assert study.tables(asked)["further"]["metrics"] == ["iou", "ece"]
    assert study.tables(asked)["further"]["methods"] == e.methods()


# ── ours beside theirs ──────────────────────────────────────────────────────────────────────────


def test_phantoms_are_never_the_studys_and_real_sets_are():
    assert study.published_names(demo())["datasets"] == {}
    names = study.published_names(config.load(PROJECT / "experiments" / "xray64.yaml"))
    assert names["datasets"] == {"jsrt": "JSRT"}
    assert names["methods"]["Supervised"] == "Sup. Baseline"
    assert names["methods"]["TEDM t=10"] == "Step 10"
    assert "LR" not in names["methods"]


def test_cells_stand_beside_the_published_ones():
    # Table 1: TEDM on JSRT 93.1 ± 3.4 at n = 1 and 97.3 ± 1.2 at n = 197.
    cells = pd.DataFrame(
        [
            ("dice", "mine", "TEDM", 1, 90.0, 2.0),
            ("dice", "mine", "TEDM", 196, 96.0, 1.0),
            ("dice", "mine", "TEDM", 5, 90.0, 2.0),
            ("dice", "mine", "LR", 1, 90.0, 2.0),
            ("dice", "other", "TEDM", 1, 90.0, 2.0),
        ],
        columns=["metric", "dataset", "method", "n_train", "mean", "std"],
    )
    found = beside.compare(cells, {"datasets": {"mine": "JSRT"}, "methods": {"TEDM": "TEDM"}})
    assert found["n_train"].tolist() == [1, 196]
    assert found["published_n"].tolist() == [1, 197]
    assert found["published_mean"].tolist() == [93.1, 97.3]
    assert found["difference"].tolist() == pytest.approx([-3.1, -1.3])
    assert found["within_spread"].tolist() == [True, False]


def test_illegible_published_cells_are_left_out():
    broken = published.load()
    broken = broken[broken["mean"].isna()].iloc[0]
    cells = pd.DataFrame(
        [(broken["metric"], "mine", "ours", broken["n_train"], 50.0, 1.0)],
        columns=["metric", "dataset", "method", "n_train", "mean", "std"],
    )
    names = {"datasets": {"mine": broken["dataset"]}, "methods": {"ours": broken["method"]}}
    assert beside.compare(cells, names).empty
