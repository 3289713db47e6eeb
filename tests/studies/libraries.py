"""Models as other libraries make them, against those libraries' own outputs.

    pip install --no-deps --target PACKAGES transformers tokenizers regex \\
        denoising-diffusion-pytorch ema-pytorch einops
    PYTHONPATH=PACKAGES python -m tests.studies.libraries

The suite needs none of these packages. Networks are tiny, with random weights; every number is the largest difference
to the library's own output, over its standard deviation. Seconds on one core.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL as Autoencoder
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser, require_sane
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import resolve
from latentprint.tasks.store.files import read_json, write_json
from tests.diffusion.oracles import draw
from tests.studies.models import RESULTS

LARGEST = 1e-5
SIDE = 16
GAUSSIAN = """
import sys, types
import torch
from latentprint import Model
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet

PREDICTS = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}

def load():
    network = Unet(dim=8, dim_mults=(1, 2), channels=3)
    diffusion = GaussianDiffusion(network, image_size=16, objective=OBJECTIVE)
    averaged = torch.load("model-1.pt", weights_only=True)["ema"]
    found = {name[len("ema_model."):]: value for name, value in averaged.items() if name.startswith("ema_model.")}
    diffusion.load_state_dict(found)
    return Model(network, (3, 16, 16), diffusion.alphas_cumprod, prediction_type=PREDICTS[OBJECTIVE])
"""
ELUCIDATED = """
import torch
from latentprint import Model
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet
from denoising_diffusion_pytorch.elucidated_diffusion import ElucidatedDiffusion

def load():
    network = Unet(dim=8, dim_mults=(1, 2), channels=3)
    network.random_or_learned_sinusoidal_cond = True
    diffusion = ElucidatedDiffusion(network, image_size=16)
    diffusion.load_state_dict(torch.load("elucidated.pt", weights_only=True))
    sigmas = diffusion.sample_schedule(1000)[:-1].flip(0)
    return Model(denoised(diffusion), (3, 16, 16), sigmas=sigmas, prediction_type="sample")

class denoised(torch.nn.Module):
    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, x, s):
        return self.diffusion.preconditioned_network_forward(x, s)
"""


def gaussian_diffusion(objective: str) -> float:
    """A ``model-N.pt`` of lucidrains' trainer, whose averaged weights the user's code loads."""
    _without_torchvision()
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2), channels=3), image_size=SIDE, objective=objective)
    average = EMA(diffusion, beta=0.9, update_every=1)
    for parameter in average.ema_model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    torch.save({"step": 1, "model": diffusion.state_dict(), "ema": average.state_dict()}, "model-1.pt")
    model = _of_code(f"gaussian_{objective}", f"OBJECTIVE = {objective!r}\n{GAUSSIAN}")
    x, own = draw(1, 2, 3, SIDE, SIDE).float(), average.ema_model.eval()

    def said(timestep: int) -> Tensor:
        predicted: Tensor = own.model_predictions(x, torch.full((2,), timestep)).pred_noise
        return predicted

    return _largest(model, x, said)


def elucidated_diffusion() -> float:
    """Its EDM: the preconditioned network is a denoiser D(y, s). In float64, since (y - D) / s loses digits."""
    _without_torchvision()
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet
    from denoising_diffusion_pytorch.elucidated_diffusion import ElucidatedDiffusion

    network = Unet(dim=8, dim_mults=(1, 2), channels=3)
    network.random_or_learned_sinusoidal_cond = True  # it asks for this alone
    own = ElucidatedDiffusion(network, image_size=SIDE).eval()
    torch.save(own.state_dict(), "elucidated.pt")
    model = _of_code("elucidated", ELUCIDATED, torch.float64)
    x, sigmas = draw(1, 2, 3, SIDE, SIDE), own.sample_schedule(1000)[:-1].flip(0)
    own.double()

    def said(timestep: int) -> Tensor:
        s = sigmas[timestep].double()
        y = x * torch.sqrt(1 + s**2)
        clean: Tensor = own.preconditioned_network_forward(y, s.expand(2))
        noise: Tensor = (y - clean) / s
        return noise

    return _largest(model, x, said)


def text(prompt: str, has_tokenizer_json: bool) -> float:
    """A Stable Diffusion folder: the text's states and the noise, against the pipeline's ``encode_prompt`` and UNet."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    signs = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {sign: i for i, sign in enumerate(signs)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(signs), max_position_embeddings=12, **sizes)).eval()
    levels = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **levels,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    parts: dict[str, Any] = {"vae": Autoencoder(**levels, **blocks), "text_encoder": encoder, "tokenizer": tokenizer}
    parts |= {"unet": unet.eval(), "scheduler": DDIMScheduler(), "safety_checker": None, "feature_extractor": None}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    folder = Path(f"stable-{len(prompt)}-{has_tokenizer_json}")
    pipeline.save_pretrained(folder)
    if not has_tokenizer_json:  # as older folders have it
        (folder / "tokenizer" / "tokenizer.json").unlink()
        write_json(folder / "tokenizer" / "vocab.json", vocabulary)
        (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    found = resolve(str(folder), prompt=prompt)
    print(*found.choices())
    model = load_denoiser(found, "cpu")
    require_sane(model)
    x = draw(1, 2, 4, 8, 8).float()
    states = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    network: Any = model.denoiser.network
    _require_close(network.condition, states[0])

    def said(timestep: int) -> Tensor:
        noise: Tensor = unet(x, timestep, encoder_hidden_states=states.expand(2, -1, -1)).sample
        return noise

    difference = _largest(model, x, said)
    _require_refused(folder)
    return difference


def _require_refused(folder: Path) -> None:
    """An encoder whose config asks for far more than its weights is refused before it is built."""
    path = folder / "text_encoder" / "config.json"
    write_json(path, {**read_json(path), "num_hidden_layers": 100_000})
    try:
        load_denoiser(str(folder), "cpu")
    except CheckpointError as error:
        if "its config implies more than" not in str(error):
            raise
        return
    raise AssertionError(f"{path} was built")


def _without_torchvision() -> None:
    """A build of its own for each torch, which the package needs for data sets alone."""
    pictures: Any = types.ModuleType("torchvision")
    pictures.transforms = pictures.utils = None
    sys.modules.setdefault("torchvision", pictures)


def _of_code(name: str, source: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    Path(f"{name}.py").write_text(source)
    model = load_denoiser(resolve(f"{name}:load"), "cpu", dtype)
    require_sane(model)
    return model


def _largest(model: LoadedModel, x: Tensor, said: Callable[[int], Tensor]) -> float:
    differences = []
    with torch.inference_mode():
        for timestep in (20, 300, 900):
            expected = said(timestep)
            found = model.denoiser(x, model.schedule.conditioning(timestep))
            differences.append(float((found - expected).abs().max() / expected.std()))
    return max(differences)


def _require_close(found: Any, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=LARGEST, atol=LARGEST)


def main() -> None:
    torch.manual_seed(0)
    studies: dict[str, Callable[[], float]] = {
        # transformers asks for torchvision, and must find none
        "Stable Diffusion, empty text": lambda: text("", has_tokenizer_json=True),
        "Stable Diffusion, a text": lambda: text("a cat on a mat", has_tokenizer_json=True),
        "Stable Diffusion, a text, older tokenizer": lambda: text("a cat on a mat", has_tokenizer_json=False),
        "denoising-diffusion-pytorch, pred_noise": lambda: gaussian_diffusion("pred_noise"),
        "denoising-diffusion-pytorch, pred_x0": lambda: gaussian_diffusion("pred_x0"),
        "denoising-diffusion-pytorch, pred_v": lambda: gaussian_diffusion("pred_v"),
        "denoising-diffusion-pytorch, EDM": elucidated_diffusion,
    }
    before, found = Path.cwd(), {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, study in studies.items():
                found[name] = study()
                print(f"{name}: {found[name]:.2g}")
        finally:
            os.chdir(before)
    names = ("denoising_diffusion_pytorch.version", "transformers", "diffusers", "torch")
    versions = {name.partition(".")[0]: str(importlib.import_module(name).__version__) for name in names}
    write_json(RESULTS / "libraries.json", {"largest_difference": found, "versions": versions})
    wrong = [name for name, difference in found.items() if not difference <= LARGEST]
    if wrong:
        raise SystemExit(f"differ by more than {LARGEST:g}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
