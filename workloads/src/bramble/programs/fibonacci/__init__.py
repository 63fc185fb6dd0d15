"""Fibonacci ratios in price swings: more often than chance?"""
