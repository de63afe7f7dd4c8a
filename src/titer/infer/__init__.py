"""What a model says and thinks likely: answers, likelihoods of answers and refusals."""
