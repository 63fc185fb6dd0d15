"""Which numbers are prime, asked of every number by itself: by trial division, by Fermat's test, by Miller and Rabin's."""
