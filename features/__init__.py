"""The feature database: embeddings and colour features of all pictures, in files.

Begin with `database.open_database`, which gives a `FeatureDatabase`; its description on disk is
`metadata.Metadata`. feature_extractor.py fills it: `extraction` sends pictures through the networks
(`inference`: batch by batch), `writer` writes the files, and `incremental` finds what need not be
extracted: features of an old database or of a stopped run.
"""
