"""The feature database: embeddings and colour features of all pictures, in files.

Begin with `database.open_database`, which gives a `FeatureDatabase`; its description on disk is
`metadata.Metadata`. feature_extractor.py fills it: `extraction` sends pictures through the networks
(`inference`: batch by batch), `chunks` are what a stopped run leaves, `writer` writes the files,
and `incremental` finds what an update has to extract.
"""
