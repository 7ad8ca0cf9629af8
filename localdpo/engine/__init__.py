"The paper as a graph of notebooks: profiles, what has to run again, and the report."
