"""What a person looks at: a cell drawn, curves, report.html, and tables of runs. It knows nothing of networks."""
