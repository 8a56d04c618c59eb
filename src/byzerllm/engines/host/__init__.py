"""The processes of the engines that have no server command of their own. Each module is run with ``python -m``."""
