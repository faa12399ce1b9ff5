"""The modeller's side: generator, objective, training, sampling, evaluation."""
