# The report: tables and figures, from the score files.


rule table1:
    """Dice of every method, data set and training size, with the study's rule for bold."""
    input:
        scores=score_files(),
    output:
        csv="<results>/table1.csv",
        md="<results>/table1.md",
        tex="<results>/table1.tex",
        long="<results>/table1_long.csv",
        p_values="<results>/table1_p_values.csv",
    log:
        "<logs>/table1.log",
    benchmark:
        "<benchmarks>/table1.tsv"
    conda:
        "../envs/tedm.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        spec=canonical_json(report_spec()),
        scores=lambda w, input: directory_of(input.scores[0], 4),
    shell:
        "tedm table --spec {params.spec:q} --scores {params.scores} --out {output.csv} 2>&1 | tee {log}"


rule learning_curves:
    """Mean Dice over the training size, one panel per test set."""
    input:
        scores=score_files(),
    output:
        "<results>/figures/learning_curves.png",
    log:
        "<logs>/figures/learning_curves.log",
    benchmark:
        "<benchmarks>/figures/learning_curves.tsv"
    conda:
        "../envs/tedm.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        spec=canonical_json(report_spec()),
        scores=lambda w, input: directory_of(input.scores[0], 4),
    shell:
        "tedm learning-curves --spec {params.spec:q} --scores {params.scores} --out {output} 2>&1 | tee {log}"


rule segmentations:
    """Images of every test set with the contours of the truth and of each method."""
    input:
        data=ancient(data_of(TEST_ON)),
        summaries=[f"{RESULTS}/data/{dataset}.json" for dataset in TEST_ON],
        masks=mask_files(figure_size(), SEEDS[0]),
    output:
        "<results>/figures/segmentations.png",
    log:
        "<logs>/figures/segmentations.log",
    benchmark:
        "<benchmarks>/figures/segmentations.tsv"
    conda:
        "../envs/tedm.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        spec=canonical_json(segmentations_spec()),
        data=lambda w, input: directory_of(input.data[0]),
        scores=lambda w, input: directory_of(input.masks[0], 4),
    shell:
        "tedm segmentations --spec {params.spec:q} --data {params.data} --scores {params.scores}"
        " --out {output} 2>&1 | tee {log}"
