# Pretraining: the contrastive stages whose weights the baselines start from.


rule pretrain:
    """Pretrain the UNet contrastively on unlabelled images: a global stage, or a local one on top of it."""
    input:
        data=lambda w: ancient(data_of([EXPERIMENT.pretraining[w.pretraining].data])),
        summary=lambda w: f"{RESULTS}/data/{EXPERIMENT.pretraining[w.pretraining].data}.json",
        encoder=lambda w: encoder_digest(w.pretraining),
    output:
        weights="<results>/pretraining/{pretraining}/model.safetensors",
        config="<results>/pretraining/{pretraining}/config.json",
        losses="<results>/pretraining/{pretraining}/losses.csv",
        digest="<results>/pretraining/{pretraining}/digest.json",
    log:
        "<logs>/pretraining/{pretraining}.log",
    benchmark:
        "<benchmarks>/pretraining/{pretraining}.tsv"
    priority: 90  # after the diffusion model, before what waits for both
    conda:
        ENVIRONMENT
    threads: lambda w: side_by_side(8, TRAININGS)
    resources:
        gpu=EXPERIMENT.gpus,
        nodes=1,
        mem_mb=lambda w, threads, attempt: requests.pretrain(
            EXPERIMENT, w.pretraining, threads, EXPERIMENT.gpus
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.pretrain(
            EXPERIMENT, w.pretraining, threads, EXPERIMENT.gpus
        ).runtime(attempt),
    params:
        spec=lambda w: canonical_json(pretraining_spec(w.pretraining)),
        encoder=lambda w, input: (
            f"--encoder {directory_of(input.encoder)}" if input.encoder else ""
        ),
        directory=lambda w, output: directory_of(output.digest),
    shell:
        # One process per GPU, as in train_backbone.
        "launch=$([ {resources.gpu} -le 1 ] || echo"
        " torchrun --standalone --nproc-per-node {resources.gpu} --no-python) &&"
        " $launch tedm pretrain --spec {params.spec:q} --data {input.data} --out {params.directory}"
        " {params.encoder} --threads {threads} 2>&1 | tee {log}"
