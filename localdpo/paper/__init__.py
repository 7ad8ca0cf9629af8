"What the paper published, as data, and what its tables and figures are drawn with."
