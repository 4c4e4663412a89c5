"""What is neither stored nor shown: a password, a key, a token, wherever a user or a library writes one.

A configuration is kept beside what it made and stands in reports, so a secret in it is refused where it is written, by
the name of its key alone. What libraries say cannot be refused: it is `masked` before it is kept or told. Both go by
names, by the forms of addresses and of well-known tokens, and by what this process's environment holds; the price is
that a token of no known form, in an option whose name says nothing, is not seen.
"""

from __future__ import annotations

import itertools
import os
import re

HIDDEN = "***"
FEWEST = 12
"""Characters of a variable that is looked for: a shorter one is found in any text."""

_WORDS = {"password", "passwd", "passphrase", "secret", "token", "credential", "credentials", "signature"}
_WORDS |= {"authorization", "bearer", "apikey", "cookie"}
_OF_KEYS = {"api", "access", "account", "auth", "private", "secret", "storage"}
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_MARKER = re.compile(r"[<\[].*[>\]]")
"""A token of a tokenizer, such as <pad>."""
_LOGIN = re.compile(
    r"(https?://)[^/\s?#@]{0,300}@|(\b\w[\w+.-]{0,20}://)[^/\s@:]{0,100}:(?!\d+(?:/|$))[^\s@]{0,300}@",
    re.IGNORECASE,
)
_QUERY = re.compile(r"([?&])([\w.%-]+)=[^&\s'\"#]+")
_FORM = re.compile(
    r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-)[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bBearer [\w.~+/-]{16,}=*"
)

REMEDY = (
    "put it into the environment of all nodes (of an object store AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of the "
    "hub HF_TOKEN, of MLflow MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD), or name the variable by an option "
    "that ends in _env"
)


def is_name(name: str) -> bool:
    """Whether a key, a variable or a header of that name holds a secret: HF_TOKEN, apiKey, X-Api-Key; no max_tokens."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    keys = any(last == "key" and first in _OF_KEYS for first, last in itertools.pairwise(words))
    return keys or not _WORDS.isdisjoint(words)


def in_address(text: str) -> bool:
    """Whether an address in the text has a password, or a secret among its parameters."""
    return _without_login(text) != text


def fault(key: str, value: object) -> str | None:
    """What is wrong with the value of a dotted key where it holds a secret, in one line without it; or None."""
    name = key.rpartition(".")[2]
    for text in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(text, str):
            continue
        if is_name(name) and name.lower().endswith("_env"):
            if not _VARIABLE.fullmatch(text):
                return f"{key} is due as the name of an environment variable, such as JUDGE_TOKEN, and not as its value"
        elif (is_name(name) and text and not _MARKER.fullmatch(text)) or masked(text) != text:
            return f"{key} holds a secret, which would be stored with what is made and shown in reports; {REMEDY}"
    return None


def masked(text: str) -> str:
    """The text with `***` in the place of each secret."""
    for name, value in os.environ.items():
        if len(value) >= FEWEST and value in text and is_name(name) and not value.startswith(("/", "~")):
            text = text.replace(value, HIDDEN)
    return _FORM.sub(HIDDEN, _without_login(text))


def _without_login(text: str) -> str:
    def parameter(found: re.Match[str]) -> str:
        secret = is_name(found[2]) or found[2].lower() in ("key", "sig")
        return f"{found[1]}{found[2]}={HIDDEN}" if secret else found[0]

    return _QUERY.sub(parameter, _LOGIN.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}@", text))
