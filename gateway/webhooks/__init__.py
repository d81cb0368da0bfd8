"""Send webhooks: signed as OpenAI signs them, to allowed hosts only, at least once, with retries for three days."""
