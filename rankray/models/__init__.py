"""What a model is, how it is found, and what it takes: generators, rewards, denoisers, their weights and packages."""
