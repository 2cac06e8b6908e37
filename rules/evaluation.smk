# Evaluation: predicted masks, and one row per subject, class and metric; tables read nothing else.


rule score_head:
    """Predict with one head, of every training size and seed, on every test set, and score each subject."""
    input:
        data=ancient(data_of(TEST_ON)),
        summaries=[f"{RESULTS}/data/{dataset}.json" for dataset in TEST_ON],
        heads=expand(
            "<results>/heads/{{head}}/n{n}/seed{seed}/head.safetensors",
            n=TRAIN_SIZES,
            seed=SEEDS,
        ),
        manifests=lambda w: manifests_of(w.head, TEST_ON),
    output:
        # What is there stays until the job has looked at it: a new size or seed is scored alone.
        scores=update(
            expand(
                "<results>/scores/{{head}}/n{n}/seed{seed}/{dataset}.csv",
                n=TRAIN_SIZES,
                seed=SEEDS,
                dataset=TEST_ON,
            )
        ),
        masks=update(
            expand(
                "<results>/scores/{{head}}/n{n}/seed{seed}/{dataset}.npz",
                n=TRAIN_SIZES,
                seed=SEEDS,
                dataset=TEST_ON,
            )
        ),
    log:
        "<logs>/scores/{head}.log",
    benchmark:
        "<benchmarks>/scores/{head}.tsv"
    conda:
        ENVIRONMENT
    threads: lambda w: side_by_side(min(8, len(TEST_ON)), len(EXPERIMENT.heads))
    resources:
        mem_mb=lambda w, threads, attempt: requests.score(
            EXPERIMENT, w.head, threads
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.score(
            EXPERIMENT, w.head, threads
        ).runtime(attempt),
        fits=FITS,  # no parameter: the inputs say which there are
    params:
        spec=lambda w: canonical_json(score_spec(w.head)),
        heads=lambda w, input: directory_of(input.heads[0], 3),
        data=lambda w, input: directory_of(input.data[0]),
        features=lambda w, input: directory_of(input.manifests[0]),
        out=lambda w, output: directory_of(output.scores[0], 3),
        begun=lambda w: begun(f"{RESULTS}/scores/{w.head}"),
    shell:
        "echo $(date +%s) $$ > {params.out}/.begun &&"
        " tedm score --spec {params.spec:q} --fits {resources.fits:q} --heads {params.heads} --data {params.data}"
        " --features {params.features} --out {params.out} --threads {threads} 2>&1 | tee {log}"
        " && echo {params.begun:q} > {params.out}/.begun"


rule score_supervised:
    """Predict with one baseline, of every training size and seed, on every test set, and score all subjects."""
    input:
        data=ancient(data_of(TEST_ON)),
        summaries=[f"{RESULTS}/data/{dataset}.json" for dataset in TEST_ON],
        models=ancient(
            expand(
                "<results>/baselines/{{baseline}}/n{n}/seed{seed}/model.safetensors",
                n=TRAIN_SIZES,
                seed=SEEDS,
            )
        ),
        digests=expand(
            "<results>/baselines/{{baseline}}/n{n}/seed{seed}/digest.json",
            n=TRAIN_SIZES,
            seed=SEEDS,
        ),
    output:
        # As of heads: what is there stays until the job has looked at it.
        scores=update(
            expand(
                "<results>/scores/{{baseline}}/n{n}/seed{seed}/{dataset}.csv",
                n=TRAIN_SIZES,
                seed=SEEDS,
                dataset=TEST_ON,
            )
        ),
        masks=update(
            expand(
                "<results>/scores/{{baseline}}/n{n}/seed{seed}/{dataset}.npz",
                n=TRAIN_SIZES,
                seed=SEEDS,
                dataset=TEST_ON,
            )
        ),
    log:
        "<logs>/scores/{baseline}.log",
    benchmark:
        "<benchmarks>/scores/{baseline}.tsv"
    conda:
        ENVIRONMENT
    # On a GPU the test sets take turns.
    threads:
        lambda w: (
            1
            if EXPERIMENT.gpus
            else side_by_side(min(8, len(TEST_ON)), len(EXPERIMENT.baselines))
        )
    resources:
        gpu=min(1, EXPERIMENT.gpus),
        mem_mb=lambda w, threads, attempt: requests.score_supervised(
            EXPERIMENT, w.baseline, threads, EXPERIMENT.gpus
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.score_supervised(
            EXPERIMENT, w.baseline, threads, EXPERIMENT.gpus
        ).runtime(attempt),
        fits=FITS,  # no parameter: the inputs say which there are
    params:
        spec=lambda w: canonical_json(score_supervised_spec(w.baseline)),
        baselines=lambda w, input: directory_of(input.digests[0], 3),
        data=lambda w, input: directory_of(input.data[0]),
        out=lambda w, output: directory_of(output.scores[0], 3),
        begun=lambda w: begun(f"{RESULTS}/scores/{w.baseline}"),
    shell:
        "echo $(date +%s) $$ > {params.out}/.begun &&"
        " tedm score-supervised --spec {params.spec:q} --fits {resources.fits:q} --baselines {params.baselines}"
        " --data {params.data} --out {params.out} --threads {threads} 2>&1 | tee {log}"
        " && echo {params.begun:q} > {params.out}/.begun"
