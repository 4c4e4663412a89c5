"""Prompts, pictures, places on any filesystem; what is made of a finished dataset without a model."""
