"""The inner loops that array calls cannot express, one body each for CPU and GPU."""
