"""Syn-Pic (paper section 3.2, Algorithm 1): prompts to a ranked preference dataset."""
