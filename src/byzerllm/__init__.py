"""byzerllm: deploy any language model as a named instance and call it through one OpenAI API."""

__version__ = "1.0.0"
