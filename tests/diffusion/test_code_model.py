"""Models that the user's code builds: read as they say, fingerprinted, and never run because a file names them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentprint.tasks.diffusion.checkpoint import load_denoiser, load_schedule, require_sane, state_shape
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.code_model import CodeModel, described, named, require_consent
from latentprint.tasks.diffusion.layout import resolve
from tests.diffusion.oracles import GaussianData, anisotropic_gaussian, draw, karras, linear_ddpm

HEAD = """
import math
import torch
from latentprint import Model

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
    def forward(self, x, t):
        return self.weight * x
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], CodeModel]:
    """Writes a module into the current folder; the name of its function ``load``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(module: str, body: str) -> CodeModel:
        (tmp_path / f"{module}.py").write_text(HEAD + body)
        sys.modules.pop(module, None)
        described.cache_clear()
        model = resolve(f"{module}:load")
        assert isinstance(model, CodeModel)
        return model

    return write


def of_gaussian(data: GaussianData, kind: str) -> str:
    """Code of the exact network of N(mean, variance I), for the schedule that is named."""
    mean, variance = data.mean.tolist(), float(data.variances[0])
    return f"""
MEAN, VARIANCE = torch.tensor({mean}, dtype=torch.float64).reshape(1, 1, 2, 2), {variance}

def vp(x, t):
    abar = ABAR[int(t[0])]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    eps = sigma * (x - alpha * MEAN) / (abar * VARIANCE + sigma**2)
    clean = (x - sigma * eps) / alpha
    return {{"epsilon": eps, "sample": clean, "v_prediction": alpha * eps - sigma * clean}}["{kind}"]

def ve(y, s):
    s = s[0].double()
    clean = MEAN + (y - MEAN) * VARIANCE / (VARIANCE + s**2)
    return {{"epsilon": (y - clean) / s, "sample": clean}}["{kind}"]

LEVELS = {list(karras(50).levels)}
"""


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("noise", ["alphas_cumprod", "sigmas"])
def test_any_prediction_on_either_kind_of_noise_is_the_known_eps(
    noise: str, kind: str, written: Callable[[str, str], CodeModel]
) -> None:
    schedule = linear_ddpm() if noise == "alphas_cumprod" else karras(50)
    data = anisotropic_gaussian(schedule, 4)
    data = GaussianData(schedule, data.mean, torch.full((4,), 0.49, dtype=torch.float64), torch.eye(4).double())
    network = "vp, (1, 2, 2), ABAR" if noise == "alphas_cumprod" else "ve, (1, 2, 2), None, LEVELS"
    body = f"\ndef load():\n    return Model({network}, prediction_type='{kind}')\n"
    code = written(f"gaussian_{noise}_{kind}", of_gaussian(data, kind) + body)
    if (noise, kind) == ("sigmas", "v_prediction"):
        with pytest.raises(CheckpointError, match=r"'v_prediction' is not one of .*, those with sigmas"):
            load_denoiser(code, "cpu", torch.float64)
        return
    model = load_denoiser(code, "cpu", torch.float64)
    require_sane(model)
    assert state_shape(code) == (1, 2, 2)
    x = draw(2, 3, 1, 2, 2)
    for timestep in (3, 30, 45):
        conditioning = model.schedule.conditioning(timestep)
        torch.testing.assert_close(model.denoiser(x, conditioning), data(x, conditioning), rtol=1e-5, atol=1e-6)


LOAD = "\ndef load():\n    return Model(Net(), (1, 8, 8), ABAR)\n"


def test_the_fingerprint_covers_source_parameters_and_noise(written: Callable[[str, str], CodeModel]) -> None:
    hashes = [
        written("fingerprint", body).sha256()
        for body in (
            LOAD,
            LOAD,
            LOAD + "# a comment\n",
            LOAD.replace("ABAR)", "ABAR[:500])"),
            "\ndef load():\n    net = Net()\n    net.weight.data += 1e-3\n    return Model(net, (1, 8, 8), ABAR)\n",
        )
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4
    code = "\nfrom pathlib import Path\n" + LOAD.replace(
        "return", "net = Net()\n    net.weight.data += float(Path('w').read_text())\n    return"
    )
    found = set()
    for weight in ("0", "0.001"):  # the same source, other weights
        Path("w").write_text(weight)
        found.add(written("reads_weights", code.replace("Model(Net()", "Model(net")).sha256())
    assert len(found) == 2


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("\nload = 3\n", "TypeError: 'int' object is not callable"),
        ("\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("\ndef other(): ...\n", "AttributeError: module"),
        ("\ndef load():\n    return 3\n", "returned no latentprint.Model"),
        ("\ndef load():\n    return Model(Net(), (8, 8), ABAR)\n", r"state_shape \(C, H, W\) are needed"),
        ("\ndef load():\n    return Model(Net(), (1, 8, 8))\n", "either alphas_cumprod or sigmas is needed"),
        (
            "\ndef load():\n    return Model(Net(), (1, 8, 8), ABAR, ABAR)\n",
            "either alphas_cumprod or sigmas is needed",
        ),
        ("\ndef load():\n    return Model(Net(), (1, 8, 8), ABAR.flip(0))\n", "alphas_cumprod must fall"),
        ("\ndef load():\n    return Model(Net(), (1, 8, 8), None, [0.0, 1.0])\n", "sigmas must rise from above 0"),
        ("\ndef load():\n    return Model(Net(), (1, 8, 8), ['x'])\n", "alphas_cumprod is not a list of numbers"),
    ],
)
def test_code_that_builds_no_model_is_one_line(
    body: str, complaint: str, written: Callable[[str, str], CodeModel]
) -> None:
    code = written("broken", body)
    with pytest.raises(CheckpointError, match=f"^broken:load: .*{complaint}") as refused:
        load_denoiser(code, "cpu")
    assert "\n" not in str(refused.value)


def test_a_network_of_the_wrong_shape_is_refused(written: Callable[[str, str], CodeModel]) -> None:
    code = written("flat", "\ndef load():\n    return Model(lambda x, t: x[:, :, 0], (1, 8, 8), ABAR)\n")
    with pytest.raises(CheckpointError, match=r"makes \(1, 1, 8\) of a state \(1, 1, 8, 8\)"):
        require_sane(load_denoiser(code, "cpu"))


def test_any_object_with_the_attributes_will_do_and_options_of_a_folder_will_not(
    written: Callable[[str, str], CodeModel],
) -> None:
    body = "\nclass load:\n    network, state_shape, sigmas = staticmethod(lambda x, t: 0 * x), (1, 8, 8), [0.1, 1.0]\n"
    code = written("duck", body)
    assert load_schedule(code)[0].sigma(1) == pytest.approx(1 / math.sqrt(2))
    with pytest.raises(CheckpointError, match="takes no option 'fp16'"):
        resolve("duck:load", variant="fp16")


def test_code_that_only_a_run_names_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    require_consent("some/folder", "RUN")
    with pytest.raises(
        CheckpointError, match=r"RUN was scored .* code builds, nobody:load: .* LATENTPRINT_MODEL=nobody:load"
    ):
        require_consent("nobody:load", "RUN")
    monkeypatch.setenv("LATENTPRINT_MODEL", "nobody:load")
    require_consent("nobody:load", "RUN")
    with pytest.raises(CheckpointError, match=re.escape("nobody:other")):
        require_consent("nobody:other", "RUN")
    named("me:load")
    require_consent("me:load", "RUN")
