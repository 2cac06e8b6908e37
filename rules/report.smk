# The report: tables, figures and one page of all of them, from the score files.


rule table1:
    """Dice of every method, data set and training size, with the study's rule for bold."""
    input:
        scores=score_files(),
    output:
        csv=report(
            "<results>/table1.csv", caption="captions/table1.rst", category="Tables"
        ),
        md="<results>/table1.md",
        tex="<results>/table1.tex",
        long="<results>/table1_long.csv",
        p_values="<results>/table1_p_values.csv",
    log:
        "<logs>/table1.log",
    benchmark:
        "<benchmarks>/table1.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json(report_spec()),
        scores=lambda w, input: directory_of(input.scores[0], 4),
    shell:
        "tedm table --spec {params.spec:q} --scores {params.scores} --out {output.csv} 2>&1 | tee {log}"


rule study_tables:
    """The study's further tables, the statistics beside its own, its claims, its numbers beside ours."""
    input:
        scores=score_files(),
    output:
        tables=report(
            [f"{RESULTS}/{name}.csv" for name in study.tables(EXPERIMENT)],
            caption="captions/study_tables.rst",
            category="Tables",
        ),
        forms=[
            f"{RESULTS}/{name}{suffix}"
            for name in study.tables(EXPERIMENT)
            for suffix in (".md", ".tex", "_long.csv", "_p_values.csv")
        ],
        summary=report(
            "<results>/statistics/summary.csv",
            caption="captions/statistics.rst",
            category="Intervals and tests",
        ),
        differences=report(
            "<results>/statistics/differences.csv",
            caption="captions/statistics.rst",
            category="Intervals and tests",
        ),
        claims=report(
            "<results>/statistics/claims.csv",
            caption="captions/statistics.rst",
            category="Intervals and tests",
        ),
        sentences="<results>/statistics/claims.md",
        published="<results>/published.csv",
    log:
        "<logs>/study_tables.log",
    benchmark:
        "<benchmarks>/study_tables.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json(study_tables_spec()),
        scores=lambda w, input: directory_of(input.scores[0], 4),
        results=lambda w, output: directory_of(output.published),
    shell:
        "tedm study-tables --spec {params.spec:q} --scores {params.scores} --out {params.results}"
        " 2>&1 | tee {log}"


rule study_figures:
    """The study's figures: the pipeline, single timesteps, segmentations by training size."""
    input:
        scores=score_files(),
        summary="<results>/statistics/summary.csv",
        data=ancient(data_of(TEST_ON)),
        summaries=[f"{RESULTS}/data/{dataset}.json" for dataset in TEST_ON],
        masks=[file for n in TRAIN_SIZES for file in mask_files(n, SEEDS[0])],
    output:
        png=report(
            [f"{RESULTS}/figures/{name}.png" for name in study_figure_names()],
            caption="captions/figures.rst",
            category="Figures",
        ),
        pdf=[f"{RESULTS}/figures/{name}.pdf" for name in study_figure_names()],
    log:
        "<logs>/figures/study.log",
    benchmark:
        "<benchmarks>/figures/study.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json(study_figures_spec()),
        scores=lambda w, input: directory_of(input.scores[0], 4),
        data=lambda w, input: directory_of(input.data[0]),
        out=lambda w, output: directory_of(output[0]),
    shell:
        "tedm study-figures --spec {params.spec:q} --scores {params.scores} --summary {input.summary}"
        " --data {params.data} --out {params.out} 2>&1 | tee {log}"


rule report:
    """One page with all of it, which opens without a network."""
    input:
        scores=score_files(),
        masks=[file for n in TRAIN_SIZES for file in mask_files(n, SEEDS[0])],
        data=ancient(data_of(TEST_ON)),
        summaries=[f"{RESULTS}/data/{dataset}.json" for dataset in TEST_ON],
        table1="<results>/table1_long.csv",
        table4="<results>/table4.md",
        tables=rules.study_tables.output,
        figures=rules.study_figures.output,
        learning_curves="<results>/figures/learning_curves.png",
        segmentations="<results>/figures/segmentations.png",
        uncertainty=["<results>/uncertainty.png"] if EXPERIMENT.heads else [],
    output:
        report("<results>/report.html", caption="captions/page.rst", category="Report"),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json(page_spec()),
        results=lambda w, output: directory_of(output[0]),
    shell:
        "tedm report --spec {params.spec:q} --results {params.results} --out {output} 2>&1 | tee {log}"


rule count_cost:
    """Count what each network and head multiplies to predict one image."""
    input:
        cost_inputs(),
    output:
        "<results>/cost/gmac.csv",
    log:
        "<logs>/cost/gmac.log",
    benchmark:
        "<benchmarks>/cost/gmac.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 3000 * attempt,
        runtime=lambda w, attempt: 20 * attempt,
    params:
        spec=canonical_json(cost_spec()),
        results=lambda w, output: directory_of(output[0], 2),
    shell:
        "tedm cost --spec {params.spec:q} --results {params.results} --quantity gmac --out {output}"
        " --threads {threads} 2>&1 | tee {log}"


rule measure_cost:
    """Measure how long they take. The only job whose result differs from run to run, so it has its own file."""
    input:
        cost_inputs(),
    output:
        "<results>/cost/seconds.csv",
    log:
        "<logs>/cost/seconds.log",
    benchmark:
        "<benchmarks>/cost/seconds.tsv"
    conda:
        ENVIRONMENT
    threads: workflow.resource_settings.cores or 1  # so that nothing runs beside it
    resources:
        gpu=min(1, EXPERIMENT.gpus),
        mem_mb=lambda w, attempt: 3000 * attempt,
        runtime=lambda w, attempt: 20 * attempt,
    params:
        spec=canonical_json(cost_spec()),
        results=lambda w, output: directory_of(output[0], 2),
    shell:
        "tedm cost --spec {params.spec:q} --results {params.results} --quantity seconds --out {output}"
        " --threads {threads} 2>&1 | tee {log}"


rule table4:
    """GMAC and seconds per image of every method."""
    input:
        gmac="<results>/cost/gmac.csv",
        seconds="<results>/cost/seconds.csv",
    output:
        csv=report(
            "<results>/table4.csv", caption="captions/table4.rst", category="Tables"
        ),
        md="<results>/table4.md",
        tex="<results>/table4.tex",
    log:
        "<logs>/table4.log",
    benchmark:
        "<benchmarks>/table4.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json(table4_spec()),
    shell:
        "tedm cost-table --spec {params.spec:q} --gmac {input.gmac} --seconds {input.seconds}"
        " --out {output.csv} 2>&1 | tee {log}"


rule learning_curves:
    """Mean Dice over the training size, one panel per test set."""
    input:
        scores=score_files(),
    output:
        png=report(
            "<results>/figures/learning_curves.png",
            caption="captions/learning_curves.rst",
            category="Figures",
        ),
        pdf="<results>/figures/learning_curves.pdf",
    log:
        "<logs>/figures/learning_curves.log",
    benchmark:
        "<benchmarks>/figures/learning_curves.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json({**report_spec(), "seed": EXPERIMENT.seed}),
        scores=lambda w, input: directory_of(input.scores[0], 4),
    shell:
        "tedm learning-curves --spec {params.spec:q} --scores {params.scores} --out {output.png} 2>&1 | tee {log}"


rule segmentations:
    """Images of every test set with the contours of the truth and of each method."""
    input:
        data=ancient(data_of(TEST_ON)),
        summaries=[f"{RESULTS}/data/{dataset}.json" for dataset in TEST_ON],
        masks=mask_files(figure_size(), SEEDS[0]),
    output:
        png=report(
            "<results>/figures/segmentations.png",
            caption="captions/segmentations.rst",
            category="Figures",
        ),
        pdf="<results>/figures/segmentations.pdf",
    log:
        "<logs>/figures/segmentations.log",
    benchmark:
        "<benchmarks>/figures/segmentations.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json(segmentations_spec()),
        data=lambda w, input: directory_of(input.data[0]),
        scores=lambda w, input: directory_of(input.masks[0], 4),
    shell:
        "tedm segmentations --spec {params.spec:q} --data {params.data} --scores {params.scores}"
        " --out {output.png} 2>&1 | tee {log}"


rule uncertainty:
    """How well the disagreement between timesteps ranks test images by Dice."""
    input:
        data=ancient(data_of(TEST_ON)),
        summaries=[f"{RESULTS}/data/{dataset}.json" for dataset in TEST_ON],
        scores=score_files(EXPERIMENT.heads),
        masks=[
            f"{RESULTS}/scores/{head}/n{figure_size()}/seed{SEEDS[0]}/{dataset}.npz"
            for head in EXPERIMENT.heads
            for dataset in TEST_ON
        ],
    output:
        csv="<results>/uncertainty.csv",
        png=report(
            "<results>/uncertainty.png",
            caption="captions/uncertainty.rst",
            category="Figures",
        ),
        pdf="<results>/uncertainty.pdf",
    log:
        "<logs>/uncertainty.log",
    benchmark:
        "<benchmarks>/uncertainty.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        spec=canonical_json(uncertainty_spec()),
        data=lambda w, input: directory_of(input.data[0]),
        scores=lambda w, input: directory_of(input.scores[0], 4),
    shell:
        "tedm uncertainty --spec {params.spec:q} --data {params.data} --scores {params.scores}"
        " --out {output.csv} 2>&1 | tee {log}"
