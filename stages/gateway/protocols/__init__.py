"""The other protocols that agents speak to the gateway: each a dialect that turns its bodies into
OpenAI's chat completions, and their answers back."""
