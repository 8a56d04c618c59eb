"""The wire of the older clients (byzerllm 0.1 with Ray): what their calls mean to this server, and back."""
