"""``python -m byzerllm`` is the ``byzerllm`` command."""

from byzerllm.cli.main import main

raise SystemExit(main())
