"""A matcher and a parameterization of two packages, combined on the command line with nothing else said."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dcf.files import read_header


def dcf(*words, cwd):
    done = subprocess.run([sys.executable, "-m", "dcf", *map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_contrastive_matching_of_factors_reloads_and_evaluates_to_the_same_number(tmp_path):
    first = json.loads(dcf("condense", "--matcher", "dcc", "--param", "lowrank:r=4", "--json", cwd=tmp_path))
    assert first["config"]["init"] == "random"  # real images to decompose, which a low-rank set starts from
    header = read_header(tmp_path / first["synthetic"])
    assert set(header.tensors) == {"A", "B", "labels"}
    assert header.nbytes == first["storage"]["payload_bytes"]

    again = json.loads(dcf("evaluate", first["synthetic"], "--json", cwd=tmp_path))
    assert again["rows"] == first["report"]["rows"]
    random = first["report"]["baselines"][0]["stat"]["mean"]
    assert again["summary"]["mean"] > random + 0.1
