"""What is compared between one process and several: the gradient of a joint batch, and a short training run."""

import sys
from pathlib import Path

import safetensors.torch
import torch
from accelerate import Accelerator

from fewstep.draws import Shard
from fewstep.objectives import WeightedSum
from fewstep.recipes import find_recipe
from fewstep.training import TrainingOptions, train
from fewstep.training.loop import LossModule

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import tiny_recipe


def gradients() -> dict[str, torch.Tensor]:
    """The gradient of the hybrid, without peers, which each process has its own of, on 64 items over all processes, in float64;
    and the number of items of this one.
    """
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    recipe = find_recipe("ring-stmd")
    model = recipe.model.build(recipe.dataset.item_shape).double()
    module = accelerator.prepare(LossModule(model, WeightedSum()))
    generator = torch.Generator().manual_seed(0)
    source = Shard(generator=generator, rank=accelerator.process_index, count=accelerator.num_processes)
    batch = recipe.dataset.train().batch(64 // accelerator.num_processes, source)
    batch["x_0"] = batch["x_0"].double()
    per_sample, _, _ = module(batch, source)
    accelerator.backward(per_sample.mean())
    return {name: p.grad for name, p in model.named_parameters()} | {"items": torch.tensor(len(per_sample))}


def run(folder: Path) -> None:
    """Write the gradients and train, both into the folder."""
    result = gradients()
    if Accelerator(cpu=True).is_main_process:
        safetensors.torch.save_file(result, folder / "gradients")
    train(tiny_recipe(steps=5, objective=WeightedSum()), TrainingOptions(out=folder / "run", device="cpu", quiet=True))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
