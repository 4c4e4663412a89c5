"""Prompts that rewards are asked about, the odd ones among them."""

PROMPTS = [
    "a red circle",
    "two blue squares",
    "",
    "🦊 \0 <b>",
    "word " * 2000,
    "a red circle",
    "a green star",
]
