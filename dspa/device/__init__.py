"""Where arrays live: namespaces, transfers, memory budgets, kernel launchers."""
