"The command `localdpo`, one file for each of its words."
