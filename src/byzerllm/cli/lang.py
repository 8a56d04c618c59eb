"""The help texts, in English and, where ``LANG`` starts with ``zh``, in Chinese. All other output is English."""

from __future__ import annotations

import os

COMMANDS: dict[str, tuple[str, str]] = {
    "deploy": ("deploy a model as a named instance", "部署一个模型实例"),
    "undeploy": ("remove an instance", "卸载一个模型实例"),
    "query": ("ask an instance one question", "向一个模型实例提问"),
    "stat": ("show the state of the workers", "查看模型实例的运行状态"),
    "serve": ("open the OpenAI API to others, in the foreground", "在前台开放 OpenAI 兼容接口"),
    "list": ("list the instances", "列出所有模型实例"),
    "scale": ("change the number of workers", "调整工作进程数量"),
    "logs": ("show an instance's engine log", "查看推理引擎日志"),
    "engine": ("install, list or remove inference engines", "安装、列出或移除推理引擎"),
    "server": ("start, stop or look at the background server", "启动、停止或查看后台服务"),
    "up": ("restore the instances deployed before", "恢复之前部署的模型实例"),
    "version": ("print the version", "显示版本号"),
}

# A flag that means something else in one command has an entry "command.flag".
FLAGS: dict[str, tuple[str, str]] = {
    "action": ("what to do", "要执行的操作"),
    "allow_credentials": ("allow credentials in requests from web pages", "允许跨域请求携带凭证"),
    "allowed_headers": ("headers that web pages may send (a JSON or comma list)", "允许的跨域请求头"),
    "allowed_methods": ("methods that web pages may use (a JSON or comma list)", "允许的跨域请求方法"),
    "allowed_origins": ("web pages that may call the API (a JSON or comma list)", "允许的跨域来源"),
    "api_key": (
        "key that callers must send: the key, env:NAME or file:PATH; else $BYZERLLM_API_KEY",
        "调用方必须提供的密钥：密钥本身、env:NAME 或 file:PATH；默认取 $BYZERLLM_API_KEY",
    ),
    "audio": (
        "sound file to write down, --query may name words that occur in it; for a chat, what --query is about",
        "要转写的音频文件，--query 可作提示词；对话模型则就其内容提问",
    ),
    "client": ("accepted for older scripts, without effect", "仅为兼容旧脚本，无作用"),
    "cpus_per_worker": ("CPU cores of one worker", "每个 worker 使用的 CPU 数"),
    "documents": ("texts to put into the order of their relevance to --query", "按与 --query 的相关性排序的文本"),
    "detail": ("add queue, latency, tokens and errors", "附加队列、延迟、token 和错误信息"),
    "file": ("YAML file with flags; a flag on the command line wins", "YAML 参数文件，命令行参数优先"),
    "follow": ("go on printing what is added, until Ctrl-C", "持续输出新增日志，直到 Ctrl-C"),
    "force": ("do not wait for running requests", "不等待正在执行的请求"),
    "gpus_per_worker": ("GPUs of one worker", "每个 worker 使用的 GPU 数"),
    "host": ("address to listen on", "监听地址"),
    "image": ("image files that the question is about", "问题所涉及的图片文件"),
    "infer_backend": (
        "vllm, llama_cpp, transformers, funasr or deepspeed; not for saas/*",
        "推理引擎，SaaS 模型无需设置",
    ),
    "infer_params": (
        "name=value ... of the model; a value may be env:NAME or file:PATH; may be given again",
        "模型参数 name=value，值可为 env:NAME 或 file:PATH，可重复指定",
    ),
    "interval": ("print again every so many seconds, until Ctrl-C", "每隔若干秒重复输出，直到 Ctrl-C"),
    "load_balance": ("how the next worker is chosen", "负载均衡策略"),
    "max_queue": ("requests that may wait for a free slot", "排队请求数上限"),
    "model": ("name of the instance", "模型实例名称"),
    "model_path": ("weights of a private model: a folder or a file", "私有模型权重的目录或文件"),
    "no_stream": ("print the answer when it is complete", "等待完整回答后再输出"),
    "no_verify": (
        "do not try the key and the model at the vendor, nor refuse what does not fit into memory",
        "不向厂商校验密钥和模型，也不检查内存是否足够",
    ),
    "no_wait": ("return before the workers are ready", "不等待 worker 就绪"),
    "name": ("the engine: vllm, llama_cpp, transformers, funasr or deepspeed", "推理引擎名称"),
    "num_workers": ("number of workers", "worker 数量"),
    "output_file": (
        "write the answer here: text, or what a model for speech or images makes",
        "输出文件：文本，或语音、图像模型生成的内容",
    ),
    "port": ("port to listen on", "监听端口"),
    "pretrained_model_type": ("saas/TYPE or custom/TYPE", "模型类型：saas/TYPE 或 custom/TYPE"),
    "prompt_template": ("accepted for older scripts, without effect", "仅为兼容旧脚本，无作用"),
    "query": ("the question", "问题"),
    "queue_timeout": ("seconds a request may wait for a free slot", "请求排队的最长秒数"),
    "ray_address": (
        "HOST:PORT or ray://HOST:PORT of a Ray cluster; auto: the cluster that is up here, else as embedded: "
        "this machine alone",
        "Ray 集群地址 HOST:PORT 或 ray://HOST:PORT；auto：使用已启动的集群，否则同 embedded（仅本机）",
    ),
    "replace": ("replace an instance of this name that has other parameters", "替换参数不同的同名实例"),
    "resources": (
        "name=amount ... of a Ray cluster's custom resources, for one worker",
        "每个 worker 占用的 Ray 自定义资源",
    ),
    "response_role": ("accepted for older scripts, without effect", "仅为兼容旧脚本，无作用"),
    "served_model_name": ("name under which callers see the model", "对外显示的模型名称"),
    "ssl_certfile": ("TLS certificate, PEM", "TLS 证书文件（PEM）"),
    "ssl_keyfile": ("TLS private key, PEM", "TLS 私钥文件（PEM）"),
    "system": ("system message before the question", "系统提示词"),
    "tail": ("number of lines from the end", "从末尾起显示的行数"),
    "template": ("accepted for older scripts, without effect", "仅为兼容旧脚本，无作用"),
    "uvicorn_log_level": ("accepted for older scripts, without effect", "仅为兼容旧脚本，无作用"),
    "version": ("release to install (default: the one that was tested)", "要安装的版本（默认为经过测试的版本）"),
    "worker": ("number of one worker, counted from 0", "指定 worker 编号，从 0 开始"),
    "worker_concurrency": (
        "slots of one worker (default: the engine's; 1 for saas/*)",
        "每个 worker 的并发数（SaaS 默认 1）",
    ),
}


def command_help(command: str) -> str:
    """One line on a command."""
    return _chosen(COMMANDS[command])


def flag_help(command: str, flag: str) -> str:
    """One line on a flag of a command."""
    return _chosen(FLAGS.get(f"{command}.{flag}") or FLAGS[flag])


def _chosen(texts: tuple[str, str]) -> str:
    return texts[os.environ.get("LANG", "").startswith("zh")]
