"""Records what every request used, and knows what each tenant has used this month."""
