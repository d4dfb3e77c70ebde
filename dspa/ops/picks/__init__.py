"""Candidates on a micrograph, and thresholds on their scores."""
