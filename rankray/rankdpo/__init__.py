"""RankDPO (paper section 3.3, Algorithm 2): a ranked dataset and a model to a better model."""
