"""The built-in engine: turns token ids into token ids, on one base and many adapters at once.

`interface.Engine` is what the gateway asks of an engine; `ipc` runs the built-in one as a supervised process
(`process`), and `fake.FakeEngine` answers from a script in tests. Inside the process, `core` steps: `scheduling`
chooses the tokens of the next forward pass (`ForwardBatch`), `adapters` keeps the LoRA adapters that they need in
memory, `models` runs the pass, `sampling` chooses the next tokens and `structured_output` restricts them to a grammar.
`messages` are the commands and events between gateway and engine, `config` the settings of one engine.
"""

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.engine.interface import Engine, Outage
from tunery.gateway.engine.messages import Embed, Generate
from tunery.gateway.engine.sampling_params import Constraint, SamplingParams

__all__ = [
    "AdapterSource",
    "Constraint",
    "Embed",
    "Engine",
    "EngineConfig",
    "FakeEngine",
    "Generate",
    "Outage",
    "SamplingParams",
    "WeightedAdapter",
]
