"""Figures and tables for people: cells, curves, report.html, and tables of runs. Independent of networks."""
