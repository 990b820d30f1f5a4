"""mm_assets: a bucket of video, images, audio and documents as searchable, clustered, watched Parquet.

The map, from the bottom up (a module imports only downward):

    errors, identity, settings, schemas    what things are called and look like
    media                                  bytes → arrays, in guarded child processes
    segmentation, extractors               arrays → tables of segments and features
    indexing, clustering, anomalies, tagging   tables of features → indexes and judgements
    buckets, ledger, lake                  the only I/O
    retrieval                              a question → ranked moments
    flows                                  where I/O and compute meet: discovery, processing, publishing, refresh
    resources, partitions                  Dagster's wrappers of the above
    assets, checks                         Dagster's declarations
    jobs, sensors (top level)              what runs together, and when
    definitions, cli                       the composition root and the command line
"""
