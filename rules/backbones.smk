# Backbones: the models whose activations are kept.


rule train_backbone:
    """Train the denoising diffusion model on unlabelled images."""
    input:
        data=lambda w: ancient(data_of([EXPERIMENT.backbones[w.backbone].data])),
        summary=lambda w: f"{RESULTS}/data/{EXPERIMENT.backbones[w.backbone].data}.json",
    output:
        weights="<results>/backbones/{backbone}/model.safetensors",
        config="<results>/backbones/{backbone}/config.json",
        losses="<results>/backbones/{backbone}/losses.csv",
        samples="<results>/backbones/{backbone}/samples.png",
        digest="<results>/backbones/{backbone}/digest.json",
    log:
        "<logs>/backbones/{backbone}.log",
    benchmark:
        "<benchmarks>/backbones/{backbone}.tsv"
    wildcard_constraints:
        backbone=of_type("ddpm"),
    priority: 100  # everything waits for it
    conda:
        ENVIRONMENT
    threads: lambda w: side_by_side(8, TRAININGS)
    resources:
        gpu=EXPERIMENT.gpus,
        nodes=1,
        mem_mb=lambda w, threads, attempt: requests.train(
            EXPERIMENT, w.backbone, threads, EXPERIMENT.gpus
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.train(
            EXPERIMENT, w.backbone, threads, EXPERIMENT.gpus
        ).runtime(attempt),
    params:
        spec=lambda w: canonical_json(backbone_spec(w.backbone)),
        directory=lambda w, output: directory_of(output.digest),
    shell:
        # One process per GPU. Several nodes: docs/training.md.
        "launch=$([ {resources.gpu} -le 1 ] || echo"
        " torchrun --standalone --nproc-per-node {resources.gpu} --no-python) &&"
        " $launch tedm train --spec {params.spec:q} --data {input.data} --out {params.directory}"
        " --threads {threads} 2>&1 | tee {log}"


rule import_backbone:
    """Take over a pretrained network: a checkpoint of the authors' code, or of another library."""
    input:
        weights=lambda w: pretrained_files(w.backbone),
    output:
        weights="<results>/backbones/{backbone}/model.safetensors",
        config="<results>/backbones/{backbone}/config.json",
        digest="<results>/backbones/{backbone}/digest.json",
    log:
        "<logs>/backbones/{backbone}.import.log",
    benchmark:
        "<benchmarks>/backbones/{backbone}.import.tsv"
    wildcard_constraints:
        backbone=one_of(
            name for name, b in EXPERIMENT.backbones.items() if b.type != "ddpm"
        ),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=lambda w, attempt: 10 * attempt,
    params:
        path=lambda w: pretrained_path(w.backbone),
        spec=lambda w: import_spec(w.backbone),
        directory=lambda w, output: directory_of(output.digest),
    shell:
        "tedm backbone import {params.path:q} --type {params.spec[type]:q}"
        " --settings {params.spec[settings]:q} --image-size {params.spec[size]}"
        " --channels {params.spec[channels]} --out {params.directory} 2>&1 | tee {log}"
