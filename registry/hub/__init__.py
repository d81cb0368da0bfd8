"""Publishing to and importing from the Hugging Face Hub."""
