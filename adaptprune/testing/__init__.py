"""The mask oracle and a tiny model of every family, for our tests, for `adaptprune doctor` and for authors of plug-ins.

| file | what it is |
|---|---|
| `oracle` | the unpruned model with its own masks made to hide dropped tokens: what a pruned model has to equal |
| `specimen` | what the tiny models are made of: a tokenizer, small configs, prompts and pictures |
| `zoo` | one model with random weights and its real processor for every family, built without any download |
| `selfcheck` | what the two say about the installed transformers: `adaptprune doctor` |

Nothing here is used while a model is pruned, and the oracle shares no code with what it checks.
"""
