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
        "../envs/tedm.yaml"
    threads: 1
    resources:
        gpu=EXPERIMENT.gpus,
        mem_mb=lambda w, attempt: 3000 * attempt,
        runtime=4 * 60,
    params:
        # The store itself is undeclared, so that a killed job is resumed instead of wiped.
        store=lambda w, output: store_for(output.manifest, w.dataset),
        spec=lambda w: canonical_json(extract_spec(w.timestep)),
        backbone=lambda w, input: directory_of(input.digest),
    shell:
        "tedm extract --spec {params.spec:q} --backbone {params.backbone} --data {input.data}"
        " --store {params.store} --manifest {output.manifest} --threads {threads} 2>&1 | tee {log}"
