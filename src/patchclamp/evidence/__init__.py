"""What makes a number a finding.

| module       | what it holds                                                                  |
|--------------|--------------------------------------------------------------------------------|
| `method`     | a question asked of a model: spec, function, result; the registry               |
| `controls`   | matched random units and directions, shuffled labels                            |
| `bootstrap`  | intervals of means, and the range of a control's distribution                   |
| `verdict`    | effect against control: supported, not supported, inconclusive                  |
| `rater`      | a language model that rates answers, over any OpenAI-compatible endpoint       |
| `provenance` | model, weights, versions, machine, time                                         |
| `record`     | spec, result, verdict and provenance as one value; JSON, page, picture, table   |
| `store`      | records on disk; replay                                                         |
| `cli_hints`  | how a spec's field is written on the command line                               |

The numbers themselves (logit difference, KL divergence, rank) are in `patchclamp.forward.metrics`.
"""
