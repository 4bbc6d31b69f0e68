"""Where pictures and labels come from. Everything is read into one table, `table.Pictures`.

Begin with `collection.read_collection`: what is below DATASET_BASE -> a table. It reads
DeepFashion's lists (`deepfashion`, `lists`) or a plain folder (`folder`). `splits` says what is
trained on and what validates, `samplers` which pictures make a batch. `import_folder` and
`csv_list` turn a folder of your own into lists, `check` reports on a data set, and `decode` reads
one picture file.
"""
