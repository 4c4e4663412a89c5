"""Tables 4 and 5 of the paper: rows that differ in one thing, tuned alike, with intervals."""
