# Data: from a source to one prepared HDF5 file.


rule prepare_data:
    """Read a data set from its source, resize it, split it and write it as one HDF5 file."""
    input:
        split=lambda w: split_file(w.dataset),
    output:
        data="<results>/data/{dataset}.h5",
        summary="<results>/data/{dataset}.json",
    log:
        "<logs>/data/{dataset}.log",
    benchmark:
        "<benchmarks>/data/{dataset}.tsv"
    priority: 200  # bad images are found before anything long begins
    conda:
        ENVIRONMENT
    threads: 4  # a killed job goes on from its last whole part
    resources:
        mem_mb=lambda w, threads, attempt: requests.prepare(
            EXPERIMENT, w.dataset, threads
        ).mem_mb(attempt),
        runtime=lambda w, threads, attempt: requests.prepare(
            EXPERIMENT, w.dataset, threads
        ).runtime(attempt),
    params:
        spec=lambda w: canonical_json(prepare_spec(w.dataset)),
    shell:
        "tedm prepare --spec {params.spec:q} --data {output.data} --summary {output.summary}"
        " --threads {threads} 2>&1 | tee {log}"
