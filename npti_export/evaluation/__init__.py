"""Whether steering worked: judges, controls, intervals, and the dose."""
