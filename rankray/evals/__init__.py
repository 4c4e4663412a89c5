"""The benchmarks of the paper's section 4.1, one file each: parsers of their published metadata, and their formulas.

Formulas are pure functions of what a judge saw (boxes, colours, answers, probabilities), so that a verdict can be
worked out by hand and tried again on stored sightings in microseconds; no benchmark's prompts are kept here.
"""
