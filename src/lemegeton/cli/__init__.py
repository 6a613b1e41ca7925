"""The command line.  `main` finds the verb; nothing else is loaded until it is known which one."""
