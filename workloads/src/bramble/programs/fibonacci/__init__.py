"""Are Fibonacci ratios between price swings more frequent than by chance?"""
