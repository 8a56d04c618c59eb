"""The ``byzerllm`` command: one file a noun, loaded only when it is asked for."""
