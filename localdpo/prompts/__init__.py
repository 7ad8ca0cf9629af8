"Which prompts models are compared on: the paper's two lists and two suites of the sprite world."
