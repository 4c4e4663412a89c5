"""Code that made files which are shipped, or stand in for files that are published: not part of the wheel.

python -m recipes.shapes.train NAME    how the models of the shapes world were trained
python -m recipes.random_weights DIR   checkpoints of random weights for real architectures
python -m recipes.meta_run             full-size models as facts, measured without a weight
"""
