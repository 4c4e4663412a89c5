"""Random weights for real architectures, small, for want of a hub and a GPU: the paper's nine models, Q-Align, and the
parts of the benchmarks' judges.

    python -m recipes.random_weights DIRECTORY [NAME...]                  small: a second and a few MB each
    python -m recipes.random_weights DIRECTORY NAME... --size full        at the published sizes: 2 to 16 GB each

writes a checkpoint a model, which the same classes load as the published ones: what a job does with it is what it will
do with real weights, but for what the pictures show.
"""
