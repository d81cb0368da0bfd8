"""What the fork server of tests/forked_process.py imports before it forks."""

# ruff: noqa: F401

import gc

import bitsandbytes
import matplotlib.backends.backend_agg
import matplotlib.figure
import matplotlib.layout_engine
from peft import PeftModel
from transformers import LlamaForCausalLM
from transformers.integrations import bitsandbytes as integration

import tunery.gateway.cli.jobs
import tunery.gateway.cli.train
import tunery.gateway.engine.models.torch.model
import tunery.gateway.gates.candidate_engine
import tunery.gateway.gates.engine_gates
import tunery.plugins.trainers.lora
import tunery.plugins.training.gates.file_gates
import tunery.plugins.training.gates.request
import tunery.plugins.training.job.launcher
import tunery.plugins.training.queued.process

gc.collect()
gc.freeze()
