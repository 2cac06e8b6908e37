# Features: the only place that runs the diffusion UNet on labelled images.


rule extract_features:
    """Run the backbone once over a data set at one timestep and keep its decoder activations."""
    input:
        data=ancient("<results>/data/{dataset}.h5"),
        summary="<results>/data/{dataset}.json",
        weights=ancient("<results>/backbones/{backbone}/model.safetensors"),
        digest="<results>/backbones/{backbone}/digest.json",
    output:
        manifest="<results>/features/{backbone}/{dataset}.t{timestep}.json",
    log:
        "<logs>/features/{backbone}/{dataset}.t{timestep}.log",
    benchmark:
        "<benchmarks>/features/{backbone}/{dataset}.t{timestep}.tsv"
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
    params:
        # The store itself is undeclared, so that a killed job is resumed instead of wiped.
        store=lambda w, output: store_for(output.manifest, w.dataset),
        spec=lambda w: canonical_json(extract_spec(w.timestep)),
        backbone=lambda w, input: directory_of(input.digest),
    shell:
        # One process per GPU, each with its part of the images.
        "launch=$([ {resources.gpu} -le 1 ] || echo"
        " torchrun --standalone --nproc-per-node {resources.gpu} --no-python) &&"
        " $launch tedm extract --spec {params.spec:q} --backbone {params.backbone} --data {input.data}"
        " --store {params.store} --manifest {output.manifest} --threads {threads} 2>&1 | tee {log}"
