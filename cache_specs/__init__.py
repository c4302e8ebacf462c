"""The contract between `extract` and `train`: what a view's spec, a dataset's item list and a
finished cache are."""
