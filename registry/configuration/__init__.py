"""What is configured: every setting, from the file, the environment and the command line."""
