"""What is compared between one process and several: the gradient of a joint batch, and a short training run."""

import sys
from pathlib import Path

import safetensors.torch
import torch
from accelerate import Accelerator

from fewstep.draws import Shard
from fewstep.models import GeneratorConfig, ModelConfig
from fewstep.networks import MLPConfig
from fewstep.objectives import Drifting, GuidedDrifting, Objective, WeightedSum
from fewstep.recipes import find_recipe
from fewstep.training import TrainingOptions, train
from fewstep.training.loop import LossModule

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import tiny_recipe


def drifting() -> dict[str, tuple[ModelConfig, Objective]]:
    """Objectives whose field is that of the joint batch, each with the generator that it trains."""
    network = MLPConfig(width=16, depth=1)
    of_classes = GeneratorConfig(network=MLPConfig(width=16, depth=1, num_classes=3), max_strength=2.0)
    return {
        "drifting": (GeneratorConfig(network=network), Drifting(queue=100)),
        "independent": (GeneratorConfig(network=network), Drifting(independent=True)),
        "guided": (of_classes, GuidedDrifting(num_classes=3, groups=4)),
    }


def gradients() -> dict[str, torch.Tensor]:
    """The gradients, in float64, on 64 items over all processes: of the hybrid, without peers, which each process has its own of,
    and of drifting after three batches; and the number of items of this process.
    """
    recipe = find_recipe("ring-stmd")
    cases = {"hybrid": (recipe.model, WeightedSum())} | drifting()
    found = {}
    for name, (config, objective) in cases.items():
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model = config.build(recipe.dataset.item_shape).double()
        module = accelerator.prepare(LossModule(model, objective).double())
        generator = torch.Generator().manual_seed(0)
        source = Shard(generator=generator, rank=accelerator.process_index, count=accelerator.num_processes)
        for _ in range(1 if name == "hybrid" else 3):
            model.zero_grad()
            batch = recipe.dataset.train().batch(64 // accelerator.num_processes, source)
            batch["x_0"] = batch["x_0"].double()
            batch["labels"] = (batch["x_0"][:, 0] > 0).long() + (batch["x_0"][:, 1] > 0).long()
            per_sample, _, _ = module(batch, source)
            accelerator.backward(per_sample.mean())
        found |= {f"{name}.{key}": p.grad for key, p in model.named_parameters()}
        found[f"{name}.items"] = torch.tensor(len(per_sample))
    return found


def run(folder: Path) -> None:
    """Write the gradients and train, both into the folder."""
    result = gradients()
    if Accelerator(cpu=True).is_main_process:
        safetensors.torch.save_file(result, folder / "gradients")
    train(tiny_recipe(steps=5, objective=WeightedSum()), TrainingOptions(out=folder / "run", device="cpu", quiet=True))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
