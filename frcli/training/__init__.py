"""Training of experts and routers. torch, transformers and peft are imported here and nowhere else."""
