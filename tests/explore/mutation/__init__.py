"""Planted mutations: what does the explorer not notice? ``python -m tests.explore.mutation`` tries them all."""
