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
| `cli_hints`  | how a spec's field would like to be written on the command line                 |
| `options`    | a spec's fields as options, text as their values: command line, forms, addresses |
| `code`       | how to ask a question again: a command, a program                               |

The numbers themselves (logit difference, KL divergence, rank) are in `patchclamp.forward.metrics`.
"""
