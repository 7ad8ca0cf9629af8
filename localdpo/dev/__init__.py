"Keeping house: notebooks, package, README and pins in step, and the documentation."
