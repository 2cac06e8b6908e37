# Features: the only place that runs the diffusion UNet on labelled images.


rule extract_features:
    """Run the backbone once over a data set, at one timestep or at all, and keep its decoder activations."""
    input:
        data=ancient("<results>/data/{dataset}.h5"),
        summary="<results>/data/{dataset}.json",
        weights=ancient("<results>/backbones/{backbone}/model.safetensors"),
        digest="<results>/backbones/{backbone}/digest.json",
    output:
        # Manifests that Snakemake deletes are written again at once where their features are complete.
        manifests=(
            [
                f"<results>/features/{{backbone}}/{{dataset}}.t{t:04d}.json"
                for t in TOGETHER
            ]
            if TOGETHER
            else "<results>/features/{backbone}/{dataset}.t{timestep}.json"
        ),
    log:
        f"<logs>/features/{{backbone}}/{{dataset}}{EXTRACTED}.log",
    benchmark:
        f"<benchmarks>/features/{{backbone}}/{{dataset}}{EXTRACTED}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=EXPERIMENT.gpus,
        mem_mb=lambda w, threads, attempt: requests.extract(
            EXPERIMENT, w.backbone, w.dataset, threads, EXPERIMENT.gpus
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.extract(
            EXPERIMENT, w.backbone, w.dataset, threads, EXPERIMENT.gpus
        ).runtime(attempt),
        # No parameter: one timestep less runs nothing. Empty where the timestep is in `spec`: grouped jobs must agree.
        timesteps=" ".join(map(str, TOGETHER)),
    params:
        # The store itself is undeclared, so that a killed job is resumed instead of wiped.
        store=lambda w, output: store_for(output[0], w.dataset),
        spec=lambda w: canonical_json(extract_spec(w)),
        manifest=lambda w, output: (
            f"{directory_of(output[0])}/{w.dataset}.t{{timestep}}.json"
            if TOGETHER
            else output[0]
        ),
        backbone=lambda w, input: directory_of(input.digest),
    shell:
        # One process per GPU, each with its part of the images.
        "launch=$([ {resources.gpu} -le 1 ] || echo"
        " torchrun --standalone --nproc-per-node {resources.gpu} --no-python) &&"
        " $launch tedm extract --spec {params.spec:q} --backbone {params.backbone} --data {input.data}"
        " --store {params.store} --manifest {params.manifest:q} --timesteps '{resources.timesteps}'"
        " --threads {threads} 2>&1 | tee {log}"


rule extract_views:
    """Run the backbone over augmented views of the first training images; those that are there stay."""
    input:
        data=ancient(data_of([TRAIN_ON])),
        summary=f"{RESULTS}/data/{TRAIN_ON}.json",
        weights=ancient("<results>/backbones/{backbone}/model.safetensors"),
        digest="<results>/backbones/{backbone}/digest.json",
    output:
        # The number of views is in the name: more of them are another file, and heads that read fewer keep theirs.
        manifests=(
            [
                f"<results>/features/{{backbone}}/{TRAIN_ON}.t{t:04d}.views{{views}}.json"
                for t in TOGETHER
            ]
            if TOGETHER
            else f"<results>/features/{{backbone}}/{TRAIN_ON}.t{{timestep}}.views{{views}}.json"
        ),
    log:
        f"<logs>/features/{{backbone}}/{TRAIN_ON}{EXTRACTED}.views{{views}}.log",
    benchmark:
        f"<benchmarks>/features/{{backbone}}/{TRAIN_ON}{EXTRACTED}.views{{views}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=EXPERIMENT.gpus,
        mem_mb=lambda w, threads, attempt: requests.extract_views(
            EXPERIMENT, w.backbone, int(w.views), threads, EXPERIMENT.gpus
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.extract_views(
            EXPERIMENT, w.backbone, int(w.views), threads, EXPERIMENT.gpus
        ).runtime(attempt),
        timesteps=" ".join(map(str, TOGETHER)),  # as in extract_features
    params:
        store=lambda w, output: store_for(output[0], TRAIN_ON),
        spec=lambda w: canonical_json(views_spec(w)),
        manifest=lambda w, output: (
            f"{directory_of(output[0])}/{TRAIN_ON}.t{{timestep}}.views{w.views}.json"
            if TOGETHER
            else output[0]
        ),
        backbone=lambda w, input: directory_of(input.digest),
    shell:
        "launch=$([ {resources.gpu} -le 1 ] || echo"
        " torchrun --standalone --nproc-per-node {resources.gpu} --no-python) &&"
        " $launch tedm extract --spec {params.spec:q} --backbone {params.backbone} --data {input.data}"
        " --store {params.store} --manifest {params.manifest:q} --timesteps '{resources.timesteps}'"
        " --views {wildcards.views} --threads {threads} 2>&1 | tee {log}"
