"""Two models' answers compared: `judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.cli.options import Json, console, out_file, print_json

app = typer.Typer()


@app.command()
def judge(
    hf_a: Annotated[Path, typer.Argument(help="An exported model; wins are its own.", show_default=False)],
    hf_b: Annotated[Path, typer.Argument(help="The model it is compared with.", show_default=False)],
    prompts: Annotated[Path | None, typer.Option(help="JSON lines id, prompt, category; absent: ours.")] = None,
    judge: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, up to /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The judge's name; absent: the server's only one.")] = None,
    out: Annotated[Path | None, out_file("Result file; absent: in the run of the first model.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer, at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers; 0: the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of drawn answers, and of the bootstrap.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in one forward pass.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; absent: CUDA where there is any.")] = None,
    answers_only: Annotated[bool, typer.Option("--answers-only", help="Make the answers, ask no judge.")] = False,
    max_judge_tokens: Annotated[int, typer.Option(min=16, help="Length of the judge's answer, at most.")] = 512,
    parallel: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 4,
    requests_per_minute: Annotated[float | None, typer.Option(min=0.1, help="Requests a minute, at most.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a request may take.")] = 120.0,
    tries: Annotated[int, typer.Option(min=1, help="Tries of a request.")] = 6,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the API key.")
    ] = "MEGACODE_JUDGE_API_KEY",
    cache: Annotated[Path | None, typer.Option(help="Directory that keeps answers and verdicts.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    as_json: Json = False,
) -> None:
    """Let two models answer prompts, and a judge compare the answers in both orders."""
    if judge is None and not answers_only:
        fix = "write --judge http://HOST:PORT/v1, or --answers-only to make the answers and judge them later"
        raise ConfigError("no judge is named", "--judge", fix)
    setup_logging()
    from megacode.judge import comparison as judging
    from megacode.judge.answers import Generation
    from megacode.judge.client import Patience
    from megacode.judge.prompts import SHIPPED

    patience = Patience(timeout=timeout, tries=tries, requests_per_minute=requests_per_minute)
    settings = judging.JudgeSettings(
        Generation(max_new_tokens, temperature, seed), batch_size, device, max_judge_tokens, parallel, patience,
        key_variable, seed, cache, overwrite,
    )  # fmt: skip
    if answers_only:
        print_json(judging.make_answers(hf_a, hf_b, prompts or SHIPPED, out, settings))
        return
    assert judge is not None
    document = judging.judge(hf_a, hf_b, judge, model, prompts or SHIPPED, out, settings)
    if as_json:
        print_json(document)
        return
    from megacode.judge.tables import render_judgement

    render_judgement(document, console())
