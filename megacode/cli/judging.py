"""`judge`: win-rates of two models, by a third one that compares their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.cli.options import Json, console, float_option, out_file, print_json

app = typer.Typer()


@app.command()
def judge(
    # What is compared, and who compares.
    hf_a: Annotated[Path, typer.Argument(help="An exported model; the win-rate is its own.", show_default=False)],
    hf_b: Annotated[Path, typer.Argument(help="The model to compare it with.", show_default=False)],
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with id, prompt, category; default: megacode's own.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server, ending in /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to use as judge; default: the server's only one.")] = None,
    out: Annotated[Path | None, out_file("Result file; default: in the run of the first model.")] = None,
    # How answers are generated, on this machine.
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer in tokens.")] = 256,
    temperature: Annotated[float, float_option("Temperature of answers; 0: greedy decoding.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled answers and of the bootstrap.")] = 0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Ask as plain text, even a model that has a chat template.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: CUDA if available.")] = None,
    answers_only: Annotated[bool, typer.Option("--answers-only", help="Generate answers; call no judge.")] = False,
    # How the judge is called.
    max_judge_tokens: Annotated[int, typer.Option(min=16, help="Maximum length of the judge's reply in tokens.")] = 512,
    parallel: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 4,
    requests_per_minute: Annotated[float | None, float_option("Maximum requests per minute.", min=0.1)] = None,
    timeout: Annotated[float, float_option("Timeout of a request in seconds.", min=0.1)] = 120.0,
    tries: Annotated[int, typer.Option(min=1, help="Attempts per request.")] = 6,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the API key.")
    ] = "MEGACODE_JUDGE_API_KEY",
    cache: Annotated[Path | None, typer.Option(help="Cache directory of answers and verdicts.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    as_json: Json = False,
) -> None:
    """Generate answers of two models, and have a judge compare them in both orders."""
    if judge is None and not answers_only:
        fix = "give --judge http://HOST:PORT/v1, or --answers-only to generate the answers and judge them later"
        raise ConfigError("no judge is named", "--judge", fix)
    setup_logging()
    from megacode.judge import comparison as judging
    from megacode.judge.answers import Generation
    from megacode.judge.client import Patience
    from megacode.judge.prompts import SHIPPED

    patience = Patience(timeout=timeout, tries=tries, requests_per_minute=requests_per_minute)
    settings = judging.JudgeSettings(
        Generation(max_new_tokens, temperature, seed, plain), batch_size, device, max_judge_tokens, parallel, patience,
        key_variable, seed, cache, overwrite,
    )  # fmt: skip
    if answers_only:  # for compute nodes without a network; the cached answers are judged elsewhere
        print_json(judging.make_answers(hf_a, hf_b, prompts or SHIPPED, out, settings))
        return
    assert judge is not None
    document = judging.judge(hf_a, hf_b, judge, model, prompts or SHIPPED, out, settings)
    if as_json:
        print_json(document)
        return
    from megacode.judge.tables import render_judgement

    render_judgement(document, console())
