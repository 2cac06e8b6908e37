# Heads on cached features, and the baselines that learn from images.


rule fit_head:
    """Fit one head for every training size and seed, on features that are read once."""
    input:
        data=ancient(data_of([TRAIN_ON])),
        summary=f"{RESULTS}/data/{TRAIN_ON}.json",
        manifests=lambda w: manifests_of(w.head, [TRAIN_ON]),
        views=lambda w: view_manifests_of(w.head),
        digest=lambda w: f"{RESULTS}/backbones/{EXPERIMENT.backbone_of(w.head)}/digest.json",
    output:
        # What is there stays until the job has looked at it: a new size or seed is fitted alone.
        update(
            expand(
                "<results>/heads/{{head}}/n{n}/seed{seed}/head.safetensors",
                n=TRAIN_SIZES,
                seed=SEEDS,
            )
        ),
    log:
        "<logs>/heads/{head}.log",
    benchmark:
        "<benchmarks>/heads/{head}.tsv"
    conda:
        ENVIRONMENT
    threads: lambda w: side_by_side(min(8, len(TRAIN_SIZES) * len(SEEDS)), len(EXPERIMENT.heads))
    resources:
        mem_mb=lambda w, threads, attempt: requests.fit(
            EXPERIMENT, w.head, threads
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.fit(
            EXPERIMENT, w.head, threads
        ).runtime(attempt),
        fits=FITS,  # no parameter: one size or seed less runs nothing
    params:
        store=lambda w, input: f"{directory_of(input.manifests[0])}/{TRAIN_ON}.zarr",
        spec=lambda w: canonical_json(fit_spec(w.head)),
        out=lambda w, output: directory_of(output[0], 3),
        begun=lambda w: begun(f"{RESULTS}/heads/{w.head}"),
    shell:
        "echo $(date +%s) $$ > {params.out}/.begun &&"
        " tedm fit --spec {params.spec:q} --data {input.data} --store {params.store}"
        " --digest {input.digest} --fits {resources.fits:q} --out {params.out} --threads {threads} 2>&1 | tee {log}"
        " && echo {params.begun:q} > {params.out}/.begun"


rule fit_supervised:
    """Train a baseline on the first n labelled images, from random weights or from pretrained ones."""
    input:
        data=ancient(data_of([TRAIN_ON])),
        summary=f"{RESULTS}/data/{TRAIN_ON}.json",
        pretrained=lambda w: pretrained_digest(w.baseline),
    output:
        model="<results>/baselines/{baseline}/n{n}/seed{seed}/model.safetensors",
        config="<results>/baselines/{baseline}/n{n}/seed{seed}/config.json",
        digest="<results>/baselines/{baseline}/n{n}/seed{seed}/digest.json",
    log:
        "<logs>/baselines/{baseline}/n{n}/seed{seed}.log",
    benchmark:
        "<benchmarks>/baselines/{baseline}/n{n}/seed{seed}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=min(1, EXPERIMENT.gpus),
        mem_mb=lambda w, threads, attempt: requests.supervise(
            EXPERIMENT, w.baseline, threads, EXPERIMENT.gpus
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.supervise(
            EXPERIMENT, w.baseline, threads, EXPERIMENT.gpus
        ).runtime(attempt),
    params:
        spec=lambda w: canonical_json(supervised_spec(w.baseline, w.n, w.seed)),
        pretrained=lambda w, input: (
            f"--pretrained {directory_of(input.pretrained)}"
            if input.pretrained
            else ""
        ),
    shell:
        "tedm supervise --spec {params.spec:q} --data {input.data} --out {output.model}"
        " {params.pretrained} --threads {threads} 2>&1 | tee {log}"
