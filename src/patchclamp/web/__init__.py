"""The workbench: `patchclamp serve`, one local process with a page for every kind of question.

| module      | what it holds                                                                    |
|-------------|----------------------------------------------------------------------------------|
| `serve`     | from options to a listening process                                              |
| `app`       | all routes together                                                              |
| `guard`     | what a request must bring: host, token, origin; what every answer forbids a page |
| `bench`     | what the server holds: models, store, files, queue                               |
| `models`    | models in memory                                                                 |
| `jobs`      | work in a queue, one piece at a time, each client in turn                        |
| `question`  | a method with its fields and model, as an address has it                         |
| `forms`     | a method's fields as widgets                                                     |
| `pages`     | which methods stand on which page                                                |
| `views`     | a record as a page shows it                                                      |
| `live`      | answers streamed while a slider moves                                            |
| `words`     | the interface in English and Chinese                                             |

Pages are Jinja templates that every client may share; what is theirs (values in the address, results, jobs) plain ES
modules fetch as JSON. The numbers on a page are those of the stored record.
"""
