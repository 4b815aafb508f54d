"""jobs: what is to be done: pairs files, prompts, the plan, the queue and its embedded server, resume."""
