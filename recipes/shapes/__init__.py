"""How the models of the shapes world were trained: generators, rewards, and their cards."""
