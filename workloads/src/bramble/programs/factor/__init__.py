"""The prime factors of a number by trial division. RSA keys are secure only because this is too slow for large numbers."""
