"""Writes docs/engines.md from the engines' own tables. With ``--check`` it only says whether the page is up to date."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path

from scripts import test_gpu

from byzerllm.engines import names
from byzerllm.engines.parameters import Parameter
from byzerllm.engines.recipes import TESTED, recipe
from byzerllm.engines.vllm_arguments import FORMS, MAIN, OURS, TABLE_VERSION

VLLM_PAGE = f"https://docs.vllm.ai/en/v{TABLE_VERSION}/cli/serve/"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "engines.md"

# Of each engine: the models it runs, and what it is best at.
_ABOUT = {
    "vllm": ("model folders, names on the Hugging Face hub", "many requests at once on GPUs; the first choice there"),
    "llama_cpp": ("GGUF files", "quantised models, machines without a GPU, a quick start"),
    "transformers": ("model folders of every task", "speech, images, and models that no other engine knows"),
    "funasr": ("folders of SenseVoice models", "speech in Chinese and its neighbours, with moods; quick on a CPU"),
    "deepspeed": ("model folders of text models", "kernel injection, and one model over several ranks; vllm is better"),
}
# Where an engine's parameters are described: a mapping in one of its modules, and what stands before each name.
_PARAMETERS = {
    "vllm": ("vllm_arguments:MAIN", "backend."),
    "llama_cpp": ("llama_cpp_parameters:PARAMETERS", ""),
    "transformers": ("hf_parameters:TRANSFORMERS", "backend."),
    "funasr": ("funasr:PARAMETERS", ""),
    "deepspeed": ("hf_parameters:DEEPSPEED", "backend."),
}
_LITERAL = re.compile(r"(?!none$)[-\w.]+")  # a default that could be typed

HEAD = """# Engines

What runs the weights of a private instance: `--infer_backend NAME`. This page is written by `scripts/engine_docs.py`
from the tables in `src/byzerllm/engines/`.

Without `--infer_backend` the engine is chosen, and said: `llama_cpp` for a GGUF file; `funasr` for a SenseVoice model;
`vllm` for a model folder or a name on the Hugging Face hub whose workers have GPUs (`--gpus_per_worker`); else
`transformers`, which reads folders only. Models for speech and images, and the older types, such as `custom/bge`, are
run by `transformers` on GPUs too.

```bash
byzerllm deploy --pretrained_model_type custom/auto --infer_backend vllm --model_path /models/zephyr-7b \\
  --gpus_per_worker 1 --infer_params backend.max_model_len=28000 --model zephyr_7b_chat
```

* A model is looked at before anything is started: files that are missing or cut short are named, and what cannot fit
  into memory is refused with the numbers. `--no_verify` makes a warning of that.
* No engine fetches what a request names: images and sounds are inside it (`data:image/png;base64,...`), else it is
  refused. `vllm` can be allowed to fetch from chosen places (see there).
* While a worker starts, `deploy` and `stat --detail` say what it does. It is ready when it has answered a real request.
* If it fails, the cause comes first, then the last lines of its log; `byzerllm logs` has all of them. That the kernel
  ended it for lack of memory is said with the numbers, where the kernel tells.

## Installing

```bash
byzerllm engine install vllm
byzerllm engine list
```

Each engine gets a virtual environment of its own below `$BYZERLLM_HOME/engines/`, as they pin each other's neighbours;
the versions that pip chose are kept there in `installed.json`. An engine without one is used from the environment that
byzerllm itself is installed in, if it is there. pip's own settings (`PIP_*`, `pip.conf`) hold; where they name no
further source, builds of PyTorch for CPUs come from `download.pytorch.org` on machines without a GPU.

"""


def render() -> str:
    """The whole page."""
    parts = [HEAD, *_engine_table(), "", *_version_table(), "", *test_gpu.kept()]
    for name in _ABOUT:
        parts += [f"## {name}", "", _description(name), "", *_parameters(name), ""]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


def _engine_table() -> list[str]:
    rows = ["| engine | runs | for | answers | Python | without a GPU | with one |", "|---|---|---|---|---|---|---|"]
    for name, (models, best) in _ABOUT.items():
        on_cpu, on_gpu = (recipe(name, cuda=cuda) for cuda in (False, True))
        pythons = " to ".join(".".join(map(str, version)) for version in on_gpu.pythons)
        answers = ", ".join(task.value for task in import_module(f"byzerllm.engines.{name}").TASKS)
        cells = (f"`{name}`", models, best, answers, pythons, f"`{on_cpu.main}`", f"`{on_gpu.main}`")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _version_table() -> list[str]:
    rows = [
        "The versions that the tests ran with, which `byzerllm engine install` takes without `--version`:",
        "",
        "| package | version | why this one |",
        "|---|---|---|",
    ]
    rows += [f"| `{package}` | {pin.version} | {pin.reason} |" for package, pin in TESTED.items()]
    newest = "The others have no fixed version; pip takes the newest that suit these: "
    names = ", ".join(f"`{name}`" + (" (the build for GPUs)" if name == "vllm" else "") for name in _unpinned())
    return [*rows, "", *textwrap.wrap(f"{newest}{names}.", 120, break_on_hyphens=False)]


def _unpinned() -> list[str]:
    """The packages that are installed in no fixed version."""
    runs = [words for name in _ABOUT for cuda in (False, True) for words in recipe(name, cuda=cuda).runs()]
    packages = dict.fromkeys(word for words in runs if words[0] == "install" for word in words[1:])
    return [word for word in packages if "==" not in word]


def _description(name: str) -> str:
    """What the engine's module says of itself, in the page's markup."""
    text = inspect.getdoc(import_module(f"byzerllm.engines.{name}")) or ""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def _parameters(name: str) -> list[str]:
    place, prefix = _PARAMETERS[name]
    module, _, table = place.partition(":")
    known: dict[str, Parameter] = getattr(import_module(f"byzerllm.engines.{module}"), table)
    rows = ["| parameter | values | default | meaning |", "|---|---|---|---|"]
    rows += [_row(prefix + parameter, said) for parameter, said in known.items()]
    return [*rows, *(_rest_of_vllm() if name == "vllm" else [])]


def _row(name: str, said: Parameter) -> str:
    default = f"`{said.default}`" if _LITERAL.fullmatch(said.default) else said.default
    cells = (f"`{name}`", said.form.said, default, said.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _rest_of_vllm() -> list[str]:
    """The names that are not described here, and those that are not for users."""
    rest = " ".join(f"`{name}`" for name in sorted(FORMS.keys() - MAIN.keys()))
    ours = ", ".join(f"`{name}`" for name in sorted(OURS))
    return [
        "",
        *textwrap.wrap(
            f"Every other argument is taken too, with `backend.` in front; [vLLM's documentation]({VLLM_PAGE}) "
            "describes it. Names are checked against the installed vLLM.",
            120,
            break_long_words=False,
            break_on_hyphens=False,
        ),
        "",
        f"<details><summary>Those of vLLM {TABLE_VERSION}</summary>",
        "",
        *textwrap.wrap(rest, 120, break_long_words=False, break_on_hyphens=False),
        "",
        "</details>",
        "",
        *textwrap.wrap(f"Not for users, as byzerllm sets them: {ours}, and those of TLS and data parallelism.", 120),
    ]


def main() -> int:
    """Write the page, or compare it; returns the exit code."""
    assert sorted(_ABOUT) == list(names()), "an engine is missing here"
    text = render()
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text("utf-8") == text
        print(f"{PAGE.name} is {'up to date' if same else 'not up to date: run python -m scripts.engine_docs'}")
        return 0 if same else 1
    PAGE.write_text(text, "utf-8")
    print(f"{PAGE.name} is written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
