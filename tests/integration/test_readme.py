"""The README's Python runs as it stands, on the run that `make demo` leaves."""

import re
from pathlib import Path

from fewstep.recipes import find_recipe
from fewstep.training import train
from test_training import options
from tiny import tiny_recipe

README = Path(__file__).parents[2] / "README.md"


def test_the_python_of_the_readme(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
    digits = find_recipe("digits-stmd")
    train(tiny_recipe(dataset=digits.dataset, sampler=digits.sampler, steps=2), options(tmp_path / "runs" / "demo"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "(16, 1, 8, 8)" in printed.replace("torch.Size([16, 1, 8, 8])", "(16, 1, 8, 8)")
    mean, variance = re.search(r"mean (-?[\d.]+) variance ([\d.]+)", printed).groups()
    assert abs(float(mean) + 0.5) < 0.08  # five standard errors of 10 000 draws
    assert abs(float(variance) - 2.45) < 0.08
