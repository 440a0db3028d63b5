"""Licence notices at the head of files go, whatever else stands there stays."""

from __future__ import annotations

import pytest

from megacode.corpus.machine.licence_notices import without_notice

CODE = "import os\n\nprint(os.name)  # Copyright is only a word here\n"
APACHE = "# Licensed under the Apache License, Version 2.0;\n# WITHOUT WARRANTIES of any kind.\n"


@pytest.mark.parametrize(
    "notice",
    [
        APACHE,
        "#!/usr/bin/env python\n# SPDX-License-Identifier: MIT\n\n",
        "/*\n * Copyright (c) 2020 A. Body\n * All rights reserved.\n */\n",
        "// Copyright 2020\n//\n// see LICENSE\n\n\n",
        "<!-- Copyright (C) A.\n  second line -->\n\n",
        "/* Copyright */\n\n" + APACHE,
    ],
)
def test_a_notice_at_the_head_is_cut_off(notice):
    assert without_notice("a.py", notice + CODE) == CODE


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        "# What this module is for.\n" + CODE,
        "print(1)\n# Copyright stands below the first line of code\n",
        "",
        "\n\nx = 1\n",
    ],
)
def test_everything_else_stays_to_the_byte(text):
    assert without_notice("a.py", text) == text


def test_another_comment_beside_the_notice_stays():
    head = "# What this module is for.\n"
    assert without_notice("a.py", APACHE + "\n" + head + "\n" + CODE) == head + "\n" + CODE


def test_a_heading_of_prose_is_no_comment():
    text = "# License\n\nMIT\n"
    assert without_notice("README.md", text) == text
