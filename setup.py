"""megacode's package metadata; tool settings live in pyproject.toml, exact versions in requirements/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "megacode/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

TRAINING = [
    "torch>=2.6",
    # pip takes 0.16 on Python 3.11 and 0.19 from 3.12 on: both say which Python they need.
    "megatron-core>=0.16.1,!=0.17.*,!=0.18.*,<0.20",
    # megatron-core 0.19 imports it on every machine, without saying so; torch brings it only in its CUDA builds
    "triton; python_version >= '3.12' and platform_system == 'Linux'",
    "psutil",  # whose process holds a run directory; megatron-core needs it too, without saying so
    "numpy",
    "scipy",  # distributions and fits: intervals of scores, laws of mixtures
    "pydantic>=2.7",
    "PyYAML",
    "typer>=0.19",  # Literal as the type of an option
    "rich",
    "safetensors",
    "transformers>=4.50",
    "accelerate",  # transformers asks for it to build a model without memory
    "tokenizers",
    "sentencepiece",
    "protobuf",
    "gigatoken",
    "orjson",
    "xxhash",
    "zstandard",
    "pyarrow",  # Parquet
    "rensa>=0.5,<0.6",  # MinHash; its version is part of what a signature means
    "ahocorasick_rs",  # many strings at once: prefixes of secrets
    "lxml",  # StackExchange's dumps, streamed
    "selectolax",  # text of HTML
    "license-expression",
    "obstore",  # object storage
    "tensorboard",
    "jinja2",
]

EXTRAS = {
    "gpu": [
        "transformer-engine[pytorch]>=2.9,<2.12; python_version < '3.12'",  # the bound of megatron-core 0.16
        "transformer-engine[pytorch]>=2.9,<2.21; python_version >= '3.12'",
    ],
    "dali": ["nvidia-dali-cuda130>=2.0"],  # for torch built for CUDA 13; pulls in its CUDA libraries
    "dali-cuda12": ["nvidia-dali-cuda120>=2.0"],
    "eval": ["lm-eval[math]==0.4.13"],
    "vllm": ["lm-eval[math,vllm]==0.4.13"],  # --backend vllm; needs a GPU
    "wandb": ["wandb>=0.31"],
    "mlflow": ["mlflow-skinny>=3"],  # a client of a tracking server; a database also needs sqlalchemy and alembic
    "otel": ["opentelemetry-sdk>=1.40", "opentelemetry-exporter-otlp-proto-http>=1.40"],
    "dev": [
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "datasketch",  # the reference of near-duplicates
        "moto[s3]",  # a server that speaks S3, with the next two
        "flask",
        "flask-cors",
        "wandb>=0.31",  # with the next five: mirrors of metrics
        "mlflow-skinny>=3",
        "sqlalchemy",
        "alembic",
        "opentelemetry-sdk>=1.40",
        "opentelemetry-exporter-otlp-proto-http>=1.40",
        "atheris; python_version < '3.14'",  # fuzzing guided by coverage; its tests are skipped without it
        "hypothesis",
        "ruff",
        "mypy",
        "import-linter",
        "types-PyYAML",
        "types-psutil",
    ],
}

setup(
    name="megacode",
    version=VERSION,
    description="A distributed trainer for language models whose data blend changes per phase",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megacode", "megacode.*"]),
    package_data={
        "megacode": [
            "config/*.yaml",
            "corpus/*.j2",
            "corpus/*.json",
            "corpus/filters/*.yaml",
            "capacity/*.yaml",
            "eval/tasks/**/*",
            "judge/prompts.jsonl",
            "report/*.j2",
            "study/*.yaml",
            "study_report/references/*.yaml",
            "study_report/*.j2",
            "convert/*.j2",
            "convert/*.txt",
        ]
    },
    install_requires=TRAINING,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megacode=megacode.cli:main"]},
)
